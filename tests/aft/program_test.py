"""The program `aft` from outside: python3 program_test.py AFT WRITE_MODEL. Standard library only."""

import bz2
import gzip
import io
import json
import lzma
import math
import os
import pathlib
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import zipfile

AFT, WRITE_MODEL = sys.argv[1], sys.argv[2]
MIXERS = ("aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention")


def aft(*arguments, stdin=b"", **options):
    """Runs aft to its end."""
    return subprocess.run([AFT, *map(str, arguments)], input=stdin, capture_output=True, timeout=120, check=False,
                          **options)


def limited(resource_name, most):
    """For preexec_fn: a limit on the process."""
    return lambda: resource.setrlimit(resource_name, (most, most))


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
                           "info": ["--json"]}.get("".join(command), ["info", "generate", "sample", "eval", "bench"]):
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

    def test_values_are_read_as_typed_or_refused_by_the_name_of_their_option(self):
        def generate(*arguments):
            return self.ok("generate", self.model, *arguments)

        self.assertEqual(len(generate("--tokens", "010")), 10)  # decimal
        self.assertEqual(len(generate("--tokens=7")), 7)
        generate("--tokens", 1, "--seed", 2**64 - 1)
        # An empty value is a value, and does not take the next word.
        self.assertEqual(generate("--prompt=", "--echo", "--tokens", 5), generate("--prompt", "", "--tokens", 5))
        for text in ("--echo", "[a,b]", "{}", '"quoted"', "a\\n", "--", "%s"):
            self.assertEqual(generate("--prompt", text, "--echo", "--tokens", 0).decode(), text)
            self.assertEqual(generate("--prompt=" + text, "--echo", "--tokens", 0).decode(), text)
        bad = ("", " 5", "5 ", "+5", "0x5", "5x", "1e2", "99999999999999999999", "-1", "٣")
        for option in ("--tokens", "--top-k", "--seed", "--threads"):
            for value in bad:
                self.assertIn(f"{option}: expected", self.refused("generate", self.model, option, value))
        self.refused("generate", self.model, "--threads", 1025)
        for option, values in (("--temperature", ("", "nan", "inf", "-1", "1e-60", "1e60", "0x1p3", "1,5", " 1")),
                               ("--top-p", ("", "nan", "0", "-0.5", "1.5", "2"))):
            for value in values:
                message = self.refused("generate", self.model, option, value)
                self.assertIn(f"{option}: expected", message)
                self.assertNotIn("top_p", message)
        for command in ("eval", "bench"):
            self.assertIn("--threads: expected", self.refused(command, self.model, "--threads", ""))
        self.assertIn("--json", self.refused("info", self.model, "--json=yes"))

    def test_mistyped_words_are_named_with_the_nearest(self):
        self.assertIn("did you mean generate?", self.refused("generat", self.model))
        self.assertIn("did you mean --tokens?", self.refused("generate", self.model, "--token", "5"))
        self.assertIn("did you mean --tokens?", self.refused("generate", self.model, "--token=5"))
        self.assertIn("did you mean --version?", self.refused("--versoin"))
        self.assertIn("one two three", self.refused("info", self.model, "one", "two", "three"))

    def test_info(self):
        for mixer, model in self.models.items():
            self.assertIn(mixer, self.ok("info", model).decode())
            info = json.loads(self.ok("info", model, "--json"))
            self.assertEqual(info["config"]["mixer"]["name"], mixer)
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

    def test_a_run_stopped_before_its_first_validation_is_a_model(self):
        data = self.model.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8:8 + length])
        metadata = header.pop("__metadata__")
        metadata["format"] = "aft-checkpoint"
        changed = {"weights." + name: entry for name, entry in header.items()}
        changed["__metadata__"] = metadata
        text = json.dumps(changed).encode()
        text += b" " * (-len(text) % 8)
        run = self.folder / "run"
        run.mkdir()
        (run / "checkpoint.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length:])
        for arguments in (["generate", "--prompt", "x", "--tokens", 60], ["eval", self.model, "--json"]):
            command, *rest = arguments
            stopped, whole = self.ok(command, run, *rest), self.ok(command, self.model, *rest)
            if command == "eval":
                stopped, whole = (json.loads(out)["bits_per_byte"] for out in (stopped, whole))
            self.assertEqual(stopped, whole)
        self.assertIn("checkpoint", self.ok("info", run).decode())
        info = json.loads(self.ok("info", run, "--json"))
        self.assertEqual(info["kind"], "checkpoint")
        self.assertEqual(info["parameters"], json.loads(self.ok("info", self.model, "--json"))["parameters"])

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

    def commands(self):
        text = self.folder / "text"
        text.write_bytes(b"some text")
        return (["--help"], ["--version"], ["generate", "--help"], ["generate", self.model, "--prompt", "x"],
                ["info", self.model], ["info", self.model, "--json"], ["eval", self.model, text], ["bench", self.model])

    @unittest.skipUnless(os.path.exists("/dev/full"), "no /dev/full")
    def test_lost_output_is_a_failure(self):
        for arguments in self.commands():
            with self.subTest(arguments=arguments), open("/dev/full", "wb") as full:
                done = subprocess.run([AFT, *arguments], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
                self.assertEqual(done.returncode, 1)
                self.assertIn(b"No space left", done.stderr)
            with self.subTest(closed=arguments):
                done = subprocess.run([AFT, *arguments], stderr=subprocess.PIPE, timeout=60, check=False,
                                      preexec_fn=lambda: os.close(1))
                self.assertEqual(done.returncode, 1)
                self.assertIn(b"standard output", done.stderr)

    def test_a_limit_of_file_size_is_an_error(self):
        for arguments in self.commands():
            with self.subTest(arguments=arguments), open(self.folder / "out", "wb") as out:
                done = subprocess.run([AFT, *arguments], stdout=out, stderr=subprocess.PIPE, timeout=60, check=False,
                                      preexec_fn=limited(resource.RLIMIT_FSIZE, 4))
                self.assertEqual(done.returncode, 1)
                self.assertIn(b"File too large", done.stderr)

    def test_a_limit_of_memory_ends_with_a_result_or_an_error(self):
        """The library of matrix products must neither start threads nor wait for memory that does not come."""
        text = self.folder / "text"
        text.write_bytes(bytes(range(256)))
        version = aft("--version", preexec_fn=limited(resource.RLIMIT_AS, 100_000 << 10))
        self.assertEqual((version.returncode, version.stderr), (0, b""))
        for megabytes in (40, 60, 80, 120, 180, 250, 350, 500):
            for arguments in (["info", self.model], ["generate", self.model, "--prompt", "x" * 40, "--tokens", "9"],
                              ["eval", self.models["attention"], text]):
                done = aft(*arguments, preexec_fn=limited(resource.RLIMIT_AS, megabytes << 20))
                self.assertIn(done.returncode, (0, 1), (megabytes, done))
                if done.returncode == 1:
                    self.assertRegex(done.stderr, rb"(?i)memory|cannot be started", (megabytes, done))

    def test_standard_input_without_end_takes_bounded_memory(self):
        arguments = ["generate", self.model, "--tokens", "40", "--threads", "1"]
        block = bytes(range(256)) * 4096
        with subprocess.Popen([AFT, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            resource.prlimit(process.pid, resource.RLIMIT_AS, (400 << 20, 400 << 20))
            for _ in range(600):
                process.stdin.write(block)
            process.stdin.close()
            text = process.stdout.read()
        self.assertEqual(process.returncode, 0)
        # Windows begin at multiples of 24, half the context of 48: what counts is the end of the last block.
        self.assertEqual(text, self.ok(*arguments, stdin=block[-(600 * len(block) % 24 + 4800):]))

    def test_a_loop_over_lines_keeps_its_input(self):
        command = f'"{AFT}" generate "{self.model}" --prompt "$line" --echo --tokens 0'
        script = f"while read -r line; do {command}; echo; done"
        done = subprocess.run(["bash", "-c", script], input=b"one\ntwo\nthree\n", capture_output=True, timeout=60,
                              check=True)
        self.assertEqual(done.stdout, b"one\ntwo\nthree\n")

    def test_no_more_threads_than_cpus(self):
        cpu = min(os.sched_getaffinity(0))
        done = aft("bench", self.model, "--json", preexec_fn=lambda: os.sched_setaffinity(0, {cpu}))
        self.assertEqual(json.loads(done.stdout)["threads"], 1)

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
        for stdin in (text, packed.read_bytes()):
            piped = json.loads(self.ok("eval", model, "-", "--json", stdin=stdin))
            self.assertEqual(piped["bits_per_byte"], result["bits_per_byte"])
        for name in ("other.XZ", "no_ending"):
            (self.folder / name).write_bytes(packed.read_bytes())
            again = json.loads(self.ok("eval", model, self.folder / name, "--json"))
            self.assertEqual(again["bytes"], len(text))

    def test_what_looks_compressed_is_refused(self):
        text = bytes(range(256)) * 10
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("text", text)
        packed = {"gz": gzip.compress(text), "bz2": bz2.compress(text), "zip": archive.getvalue()}
        for ending, content in packed.items():
            for name in (f"text.{ending}", f"text.{ending.upper()}", "text"):
                (self.folder / name).write_bytes(content)
                self.assertIn("compress", self.refused("eval", self.model, self.folder / name))
            self.refused("eval", self.model, "-", stdin=content)
            (self.folder / f"plain.{ending}").write_bytes(text)  # not what its name says
            self.assertIn("compress", self.refused("eval", self.model, self.folder / f"plain.{ending}"))
        for content in (b"BZh is how a text may begin", b"PK was here", b"\x1f\x8bx", b"\0" * 20):
            self.ok("eval", self.model, "-", stdin=content)

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

    def test_mixers_of_the_trainer_alone_are_refused_by_name(self):
        model, text = self.folder / "compared.safetensors", self.folder / "text"
        text.write_bytes(b"some text")
        for mixer in ("linear_attention", "sliding_window", "synthesizer"):
            subprocess.run([WRITE_MODEL, mixer, model], check=True)
            self.assertIn(mixer, self.ok("info", model).decode())
            for command in (["generate", model, "--prompt", "x"], ["eval", model, text], ["bench", model]):
                with self.subTest(mixer=mixer, command=command[0]):
                    self.assertIn(f"its mixer is {mixer}", self.refused(*command))

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
            "newer version": good.replace(b'"format_version":"2"', b'"format_version":"3"'),
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
