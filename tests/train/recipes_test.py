"""Every recipe of recipes/ is one that trains, without its data, and has the parameters that its comment counts; every
key that a recipe may have is in docs/recipes.md."""

import json
import pathlib
import re
import tomllib
import unittest

from program import ProgramTest, program

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


def counts(text):
    """Mixer -> parameters that the comment states; "" is the recipe's own mixer."""
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    number = r"(\d[\d,]*\d)"
    found = [("", count) for count in re.findall(f"Together {number}", comment)]
    found += [(mixer, count) for count, mixer in re.findall(rf"{number} with (aft_\w+|attention)", comment)]
    return {mixer: int(count.replace(",", "")) for mixer, count in found}


class Recipes(ProgramTest):
    def dry_run(self, path, *sets):
        words = [program(), "train", str(path), "--dry-run", "--json"]
        for item in sets:
            words += ["--set", item]
        return json.loads(self.call(words).stdout)

    def test_dry_run_and_stated_parameters(self):
        self.assertGreater(len(RECIPES), 3)
        for path in RECIPES:
            text = path.read_text(encoding="utf-8")
            stated = counts(text)
            self.assertIn("", stated, path.name)
            for mixer, count in stated.items():
                with self.subTest(recipe=path.name, mixer=mixer):
                    sets = [f"mixer.name={mixer}"] if mixer else []
                    if "data" not in tomllib.loads(text):  # that of a model which is measured untrained
                        sets.append("data.path=unused")
                    self.assertEqual(self.dry_run(path, *sets)["parameters"], count)

    def test_every_key_is_documented(self):
        documentation = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
        for model, path, data in (("byte_lm", "recipe.toml", ()), ("classifier", "images.toml", ("data.format=idx",))):
            (self.folder / "images.toml").write_text('[mixer]\nwindow = 7\n[data]\npath = "unused"\n')
            sets = [f"model.model={model}", *data]
            for mixer in self.dry_run(path, *sets)["mixers"]:
                self.assertIn(f"\n| `{mixer}` |", documentation)
                recipe = tomllib.loads(self.dry_run(path, *sets, f"mixer.name={mixer}")["recipe"])
                for section, keys in recipe.items():
                    for key in keys:
                        self.assertIn(f"`{section}.{key}`", documentation)

    def test_counts_are_found(self):
        comment = "# Together\n# 1,234; 56 with aft_simple, 7,890 with\n# attention.\nx = 1  # Together 3"
        self.assertEqual(counts(comment), {"": 1234, "aft_simple": 56, "attention": 7890})


if __name__ == "__main__":
    unittest.main()
