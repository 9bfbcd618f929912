"""Python functions: the allowed syntax, the sandbox that runs them, the judge and the experiment."""

from bitnet.experiments.python_subset.task import experiment as experiment
