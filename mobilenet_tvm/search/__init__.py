"""The searcher and the tuning run: budget, resume, failures, progress."""

from mobilenet_tvm.search.autotvm import AutoTvmSearcher
from mobilenet_tvm.search.measure import LocalMeasurer, Measurer
from mobilenet_tvm.search.progress import PlainProgress, Progress, RichProgress
from mobilenet_tvm.search.replay import ReplayMeasurer
from mobilenet_tvm.search.trial import Failure, Trial
from mobilenet_tvm.search.tuning import Budget, Summary, tune_tasks

__all__ = [
    "AutoTvmSearcher",
    "Budget",
    "Failure",
    "LocalMeasurer",
    "Measurer",
    "PlainProgress",
    "Progress",
    "ReplayMeasurer",
    "RichProgress",
    "Summary",
    "Trial",
    "tune_tasks",
]
