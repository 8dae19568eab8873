#!/usr/bin/env python3
"""What ptxas says of every kernel: registers, shared memory, spills.

  compile COMMAND...        runs COMMAND, nvcc with -Xptxas=-v: what ptxas says goes to OBJECT.ptxas (OBJECT follows -o)
  collect TABLE OBJECT...   writes TABLE, a line a kernel and architecture, from the files beside the objects
  check TABLE               fails where a forward kernel of f32 or of 16-bit numbers spills registers

example: cmake/ptxas.py check build/ptxas.tsv"""

import pathlib
import re
import subprocess
import sys

COLUMNS = ("kernel", "unit", "architecture", "registers", "shared", "stack", "spill_stores", "spill_loads")
ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<spill_stores>\d+) bytes spill stores, "
    r"(?P<spill_loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<used>[^\n]*)",
    re.DOTALL,
)


def compile_unit(command):
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    said, rest = [], []
    for line in done.stderr.splitlines(keepends=True):
        of_ptxas = line.startswith("ptxas info") or re.match(r" +\d+ bytes stack frame", line)
        (said if of_ptxas else rest).append(line)
    sys.stderr.writelines(rest)
    if done.returncode == 0:
        pathlib.Path(command[command.index("-o") + 1] + ".ptxas").write_text("".join(said), encoding="utf-8")
    return done.returncode


def readable(names):
    """Mangled names of kernels as the source has them, without result and parameters."""
    filtered = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    result = []
    for line in filtered.stdout.splitlines():
        name = re.sub(r"\b_GLOBAL__N_\w+|\(anonymous namespace\)", "", line).replace("::::", "::").removeprefix("void ")
        depth, end = 0, len(name)
        for i, letter in enumerate(name):
            depth += (letter == "<") - (letter == ">")
            if letter == "(" and depth == 0:
                end = i
                break
        result.append(name[:end])
    return result


def kernels_of(logs):
    """logs: what ptxas said by unit."""
    rows = []
    for unit, log in logs.items():
        for entry in ENTRY.finditer(log):
            shared = re.search(r"(\d+) bytes smem", entry["used"])
            rows.append({**entry.groupdict(), "unit": unit, "shared": shared[1] if shared else "0"})
    for row, name in zip(rows, readable([row["kernel"] for row in rows]), strict=True):
        row["kernel"] = name
    return sorted(rows, key=lambda row: (row["unit"], row["kernel"], row["architecture"]))


def collect(table, objects):
    logs = {}
    for compiled in map(pathlib.Path, objects):
        log = compiled.with_name(compiled.name + ".ptxas")
        if log.exists():
            unit = f"{compiled.parent.name}/{compiled.name.removesuffix('.o')}"
            logs[unit] = log.read_text(encoding="utf-8")
    lines = ["\t".join(COLUMNS), *("\t".join(row[c] for c in COLUMNS) for row in kernels_of(logs))]
    pathlib.Path(table).write_text("\n".join(lines) + "\n", encoding="utf-8")


def check(table):
    lines = [line.split("\t") for line in pathlib.Path(table).read_text(encoding="utf-8").splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    if not rows:
        print(f"{table} has no kernels: build aft_ops with AFT_CUDA=ON", file=sys.stderr)
        return 1
    spilling = [row for row in rows if int(row["spill_stores"]) + int(row["spill_loads"]) > 0]
    refused = [row for row in spilling if row["unit"].endswith("/cuda_forward.cu") and "double" not in row["kernel"]]
    most = max(rows, key=lambda row: int(row["registers"]))
    print(f"{len(rows)} kernels in {table}: at most {most['registers']} registers ({most['kernel']}), "
          f"{len(spilling)} spill, of them {len(refused)} forward kernels of f32 or of 16-bit numbers")
    for row in refused:
        print(f"{row['unit']}, {row['architecture']}: {row['kernel']} spills {row['spill_stores']} bytes to memory: it "
              f"holds more than its {row['registers']} registers", file=sys.stderr)
    return 1 if refused else 0


def main():
    match sys.argv[1:]:
        case ["compile", *command] if "-o" in command:
            return compile_unit(command)
        case ["collect", table, *objects]:
            return collect(table, objects)
        case ["check", table]:
            return check(table)
        case ["-h" | "--help"]:
            print(__doc__)
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
