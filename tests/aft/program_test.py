"""The program `aft` from outside: python3 program_test.py AFT WRITE_MODEL. Standard library only."""

import json
import lzma
import math
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

AFT, WRITE_MODEL = sys.argv[1], sys.argv[2]
MIXERS = ("aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention")


def aft(*arguments, stdin=b""):
    """Runs aft to its end."""
    return subprocess.run([AFT, *map(str, arguments)], input=stdin, capture_output=True, timeout=120, check=False)


class ProgramTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.models = {}
        for mixer in MIXERS:
            self.models[mixer] = self.folder / f"{mixer}.safetensors"
            subprocess.run([WRITE_MODEL, mixer, self.models[mixer]], check=True)
        self.model = self.models["aft_local"]

    def ok(self, *arguments, stdin=b""):
        done = aft(*arguments, stdin=stdin)
        self.assertEqual(done.returncode, 0, done)
        return done.stdout

    def refused(self, *arguments, stdin=b""):
        """Exit code 2, a message on standard error, nothing on standard output."""
        done = aft(*arguments, stdin=stdin)
        self.assertEqual(done.returncode, 2, (arguments, done))
        self.assertEqual(done.stdout, b"", arguments)
        self.assertTrue(done.stderr.strip(), arguments)
        return done.stderr.decode(errors="replace")

    def test_help_of_every_command(self):
        for command in ([], ["info"], ["generate"], ["eval"], ["bench"]):
            text = self.ok(*command, "--help").decode()
            self.assertIn("Example:\n  aft ", text)
            for option in {"generate": ["--prompt", "--tokens", "--temperature", "--top-p", "--top-k", "--seed",
                                        "--threads"], "eval": ["--json", "FILE"], "bench": ["--json", "--threads"],
                           "info": ["--json"]}.get("".join(command), ["info", "generate", "eval", "bench"]):
                self.assertIn(option, text)

    def test_version(self):
        self.assertRegex(self.ok("--version").decode(), r"^aft \d+\.\d+\.\d+\n$")

    def test_usage_errors(self):
        self.refused()
        self.refused("sing")
        self.refused("info")
        self.refused("generate", self.model, "--colour", "red")
        self.refused("generate", self.model, "--tokens", "-1")
        self.refused("generate", self.model, "--tokens", "many")
        self.refused("generate", self.model, "--temperature", "-1")
        self.refused("generate", self.model, "--temperature", "nan")
        self.refused("generate", self.model, "--top-p", "2")
        self.refused("generate", self.model, "--top-k", "-3")
        self.refused("generate", self.model, "--seed", "-3")
        self.refused("generate", self.model, "--threads", "-1")
        self.refused("generate", self.model, "--threads", "1000000")
        self.refused("eval", self.model)

    def test_info(self):
        for mixer, model in self.models.items():
            self.assertIn(mixer, self.ok("info", model).decode())
            info = json.loads(self.ok("info", model, "--json"))
            self.assertEqual(info["config"]["mixer"], mixer)
            self.assertEqual(info["config"]["channels"], 21)
            self.assertEqual(info["tensors"]["head.weight"], [256, 21])
            self.assertEqual(info["parameters"], sum(math.prod(shape) for shape in info["tensors"].values()))
            self.assertEqual(info["bytes"], model.stat().st_size)

    def test_a_run_folder_is_a_model(self):
        run = self.folder / "run"
        run.mkdir()
        self.assertIn("model.safetensors", self.refused("info", run))
        (run / "model.safetensors").write_bytes(self.model.read_bytes())
        self.ok("info", run)
        self.assertEqual(len(self.ok("generate", run, "--tokens", 5, "--prompt", "x")), 5)

    def test_generate(self):
        for model in self.models.values():
            # 200 bytes pass the context of 48 several times.
            text = self.ok("generate", model, "--prompt", "To be", "--tokens", 200, "--seed", 3)
            self.assertEqual(len(text), 200)
            self.assertEqual(text, self.ok("generate", model, "--prompt", "To be", "--tokens", 200, "--seed", 3))
            self.assertNotEqual(text, self.ok("generate", model, "--prompt", "To be", "--tokens", 200, "--seed", 4))
            self.assertEqual(text, self.ok("generate", model, "--prompt", "To be", "--tokens", 200, "--seed", 3,
                                           "--threads", 1))
            self.assertEqual(b"To be" + text, self.ok("generate", model, "--prompt", "To be", "--tokens", 200,
                                                      "--seed", 3, "--echo"))
            greedy = self.ok("generate", model, "--prompt", "To be", "--tokens", 50, "--temperature", 0)
            self.assertEqual(greedy, self.ok("generate", model, "--prompt", "To be", "--tokens", 50, "--top-k", 1,
                                             "--seed", 9))
        self.assertEqual(self.ok("generate", self.model, "--tokens", 0, "--prompt", "x"), b"")

    def test_prompts(self):
        def run(*arguments, stdin=b""):
            return self.ok("generate", self.model, "--tokens", 40, *arguments, stdin=stdin)

        given = run("--prompt", "x\xe9y")
        self.assertEqual(given, run("--prompt", "-", stdin="x\xe9y".encode()))
        self.assertEqual(given, run(stdin="x\xe9y".encode()))
        self.assertEqual(run("--prompt", ""), run("--prompt", "\n"))
        self.assertEqual(run(), run("--prompt", ""), "an empty pipe is no prompt")
        self.assertEqual(run("--prompt", "x"), run("--prompt", "x", stdin=b"not looked at"))
        self.assertEqual(len(run("--prompt", "-", stdin=bytes(range(256)) * 1000)), 40)
        with open("/dev/null", "rb") as null:
            done = subprocess.run([AFT, "generate", self.model, "--tokens", "40"], stdin=null, capture_output=True,
                                  timeout=60, check=True)
        self.assertEqual(done.stdout, run("--prompt", ""))

    def test_bytes_come_as_they_are_made(self):
        with subprocess.Popen([AFT, "generate", self.model, "--prompt", "x", "--tokens", "100000000"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            self.assertEqual(len(process.stdout.read(10)), 10)
            self.assertIsNone(process.poll())
            # A closed pipe ends it, quietly.
            process.stdout.close()
            code = process.wait(timeout=60)
            self.assertIn(code, (0, -signal.SIGPIPE))
            self.assertEqual(process.stderr.read(), b"")

    def test_closed_pipe_where_the_signal_is_ignored(self):
        with subprocess.Popen([AFT, "generate", self.model, "--prompt", "x", "--tokens", "100000000"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, restore_signals=False) as process:
            process.stdout.read(10)
            process.stdout.close()
            self.assertEqual(process.wait(timeout=60), 0)
            self.assertEqual(process.stderr.read(), b"")

    @unittest.skipUnless(os.path.exists("/dev/full"), "no /dev/full")
    def test_full_device_is_a_failure(self):
        with open("/dev/full", "wb") as full:
            for arguments in (["generate", self.model, "--prompt", "x"], ["info", self.model]):
                done = subprocess.run([AFT, *arguments], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
                self.assertEqual(done.returncode, 1)
                self.assertIn(b"No space left", done.stderr)

    def test_eval(self):
        text = bytes(range(256)) * 10 + b"x"
        plain = self.folder / "text"
        plain.write_bytes(text)
        packed = self.folder / "text.xz"
        packed.write_bytes(lzma.compress(text[:1000]) + lzma.compress(text[1000:]))
        for model in self.models.values():
            lines = self.ok("eval", model, plain).decode().splitlines()
            result = json.loads(lines[-1])
            self.assertEqual(result["bytes"], len(text))
            self.assertEqual(result["predicted"], len(text) - math.ceil(len(text) / 48))
            self.assertGreater(result["bits_per_byte"], 4)
            only = self.ok("eval", model, plain, "--json").decode().splitlines()
            self.assertEqual(len(only), 1)
            self.assertEqual(json.loads(only[0])["bits_per_byte"], result["bits_per_byte"])
            unpacked = json.loads(self.ok("eval", model, packed, "--json", "--threads", 3))
            self.assertEqual(unpacked["bits_per_byte"], result["bits_per_byte"])

    def test_eval_refuses_what_it_cannot_measure(self):
        for name, content in (("empty", b""), ("one", b"x"), ("plain.xz", b"not packed"),
                              ("cut.xz", lzma.compress(b"text" * 100)[:-9]), ("none.xz", b"")):
            (self.folder / name).write_bytes(content)
            self.refused("eval", self.model, self.folder / name)
        self.refused("eval", self.model, self.folder / "missing")
        self.refused("eval", self.model, self.folder)

    def test_bench(self):
        for model in self.models.values():
            self.assertIn(b"GB/s", self.ok("bench", model))
            result = json.loads(self.ok("bench", model, "--json", "--threads", 2))
            self.assertEqual(result["threads"], 2)
            self.assertGreater(result["read_gb_per_s"], 0)
            self.assertGreater(result["prefill"]["gflops"], 0)
            self.assertEqual([row["depth"] for row in result["decode"]], [0])  # the context holds no more
            for row in result["decode"]:
                ideal = result["weight_bytes_per_token"] / result["read_gb_per_s"] / 1e6
                self.assertAlmostEqual(row["multiple"], row["ms_per_token"] / ideal, delta=1e-6 * row["multiple"])

    def test_bad_models(self):
        good = self.model.read_bytes()
        (length,) = struct.unpack("<Q", good[:8])
        header = good[8:8 + length]
        bad = {
            "missing": None,
            "empty": b"",
            "text": b"This is no model, but a text that somebody took for one.",
            "zip": b"PK\3\4" + bytes(1000),
            "zeros": bytes(4096),
            "huge length": struct.pack("<Q", 2**63) + good[8:],
            "length past the end": struct.pack("<Q", len(good)) + good[8:],
            "cut header": good[:length // 2],
            "cut data": good[:-1],
            "longer": good + b"x",
            "no metadata": good[:8] + header.replace(b'"__metadata__"', b'"__nometadat__"') + good[8 + length:],
            "other format": good.replace(b'"format":"aft"', b'"format":"pt_"'),
            "newer version": good.replace(b'"format_version":"1"', b'"format_version":"2"'),
            "other config": good.replace(b'\\"channels\\":21', b'\\"channels\\":22'),
            "other mixer": good.replace(b"aft_local", b"aft_nolcl"),
            "other type": good.replace(b'"F32"', b'"I32"', 1),
        }
        text = self.folder / "text"
        text.write_bytes(b"some text")
        for name, content in bad.items():
            path = self.folder / "bad.safetensors"
            path.unlink(missing_ok=True)
            if content is not None:
                self.assertNotEqual(content, good, name)
                path.write_bytes(content)
            for command in (["info", path], ["generate", path, "--prompt", "x"], ["eval", path, text], ["bench", path]):
                with self.subTest(name=name, command=command[0]):
                    self.assertIn("bad.safetensors", self.refused(*command))

    def test_weights_that_are_not_numbers_end_with_a_message(self):
        good = bytearray(self.model.read_bytes())
        good[-4000:] = b"\xff" * 4000
        path = self.folder / "nan.safetensors"
        path.write_bytes(bytes(good))
        done = aft("generate", path, "--prompt", "x")
        self.assertIn(done.returncode, (0, 2))
        self.assertEqual(done.returncode == 2, b"finite" in done.stderr)

    def test_starts_at_once(self):
        """No speed is asserted; a start of a second would show a library that should not be there."""
        start = time.monotonic()
        self.ok("--version")
        self.assertLess(time.monotonic() - start, 5)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
