"""What can go wrong on one machine.

LocalStackError                   said to the user as it is, exit code 1
├── MissingPrerequisiteError      something to install, with the command
├── BuildError                    a Go build that did not end well, with its last lines
├── ProgramError                  a program that ended or did not become ready, with its last lines
└── StepError                     a step of bringing the stack up that did not reach its goal
"""


class LocalStackError(Exception):
    """A failure of the local stack whose message tells a person what to do."""


class MissingPrerequisiteError(LocalStackError):
    """Something this machine lacks; the message holds the command that installs it."""


class BuildError(LocalStackError):
    """A program could not be built."""


class ProgramError(LocalStackError):
    """A program ended, or did not become ready in time."""


class StepError(LocalStackError):
    """The stack came up but did not do what it should."""
