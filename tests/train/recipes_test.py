"""Every recipe of recipes/ is one that trains, without its data, and has the parameters that its comment counts."""

import json
import pathlib
import re
import tomllib
import unittest

from program import ProgramTest, program

RECIPES = sorted((pathlib.Path(__file__).resolve().parents[2] / "recipes").glob("*.toml"))


def counts(text):
    """Mixer -> parameters that the comment states; "" is the recipe's own mixer."""
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    number = r"(\d[\d,]*\d)"
    found = [("", count) for count in re.findall(f"Together {number}", comment)]
    found += [(mixer, count) for count, mixer in re.findall(rf"{number} with (aft_\w+|attention)", comment)]
    return {mixer: int(count.replace(",", "")) for mixer, count in found}


class Recipes(ProgramTest):
    def test_dry_run_and_stated_parameters(self):
        self.assertGreater(len(RECIPES), 3)
        for path in RECIPES:
            text = path.read_text(encoding="utf-8")
            stated = counts(text)
            self.assertIn("", stated, path.name)
            for mixer, count in stated.items():
                with self.subTest(recipe=path.name, mixer=mixer):
                    words = [program(), "train", str(path), "--dry-run", "--json"]
                    if mixer:
                        words += ["--set", f"mixer.name={mixer}"]
                    if "data" not in tomllib.loads(text):  # that of a model which is measured untrained
                        words += ["--set", "data.path=unused"]
                    self.assertEqual(json.loads(self.call(words).stdout)["parameters"], count)

    def test_counts_are_found(self):
        comment = "# Together\n# 1,234; 56 with aft_simple, 7,890 with\n# attention.\nx = 1  # Together 3"
        self.assertEqual(counts(comment), {"": 1234, "aft_simple": 56, "attention": 7890})


if __name__ == "__main__":
    unittest.main()
