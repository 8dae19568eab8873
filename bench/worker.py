"""A process beside this one, asked through pipes: a line of text each way, answers in JSON."""

import json
import os
import select
import subprocess


class Died(Exception):
    """The process ended, or did not answer in time and was ended."""


class Worker:
    """Its first line says that it is ready and is kept as `greeting`. `seconds` is how long an answer may take."""

    def __init__(self, command, environment=None, seconds=None):
        self.seconds = seconds
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, **(environment or {})})
        self.greeting = self.receive()

    def send(self, line):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # receive() says so

    def receive(self):
        ready, _, _ = select.select([self.process.stdout], [], [], self.seconds)
        line = self.process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        self.process.kill()
        code = self.process.wait()
        raise Died(f"ended with {code}" if ready else f"gave no answer within {self.seconds} s")

    def ask(self, line):
        self.send(line)
        return self.receive()

    def close(self):
        self.process.stdin.close()
        self.process.wait()
