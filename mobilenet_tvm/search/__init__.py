"""The searchers and the tuning run: budget, resume, failures, progress."""

from mobilenet_tvm.search.ansor import AnsorSearcher, CostModel
from mobilenet_tvm.search.autotvm import AutoTvmSearcher
from mobilenet_tvm.search.interface import Budget, Searcher, Summary
from mobilenet_tvm.search.measure import FleetMeasurer, LocalMeasurer, Measurer, Request
from mobilenet_tvm.search.progress import PlainProgress, Progress, RichProgress
from mobilenet_tvm.search.remote import RemoteMeasurer
from mobilenet_tvm.search.replay import ReplayMeasurer
from mobilenet_tvm.search.transfer import first_configs
from mobilenet_tvm.search.trial import Failure, Trial
from mobilenet_tvm.search.tuning import tune_tasks

__all__ = [
    "AnsorSearcher",
    "AutoTvmSearcher",
    "Budget",
    "CostModel",
    "Failure",
    "FleetMeasurer",
    "LocalMeasurer",
    "Measurer",
    "PlainProgress",
    "Progress",
    "RemoteMeasurer",
    "ReplayMeasurer",
    "Request",
    "RichProgress",
    "Searcher",
    "Summary",
    "Trial",
    "first_configs",
    "tune_tasks",
]
