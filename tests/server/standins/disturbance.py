"""Runs that end badly, and a graph that only waits."""

import logging
import time

import comfy.model_management as management
import torch
from comfy_api.latest import io

from dit_accel.tests.server.standins.models import CATEGORY
from dit_accel.tests.server.standins.pack import executing, on_sampling


class Disturbance(io.ComfyNode):
    """At the n-th sparse call of a run: raises, reports that memory ran out, or waits for an interrupt."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinDisturbance",
            category=CATEGORY,
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input("kind", options=["none", "raise", "out_of_memory", "wait"]),
                io.Int.Input("call", default=5),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, kind, call):
        def disturb(executor, *args, **kwargs):
            calls = []

            def execute(original, *args, **kwargs):
                calls.append(None)
                if len(calls) == call:
                    _ACTIONS[kind]()
                return original(*args, **kwargs)

            with executing(execute):
                return executor(*args, **kwargs)

        return io.NodeOutput(on_sampling(model, "standin_disturbance", disturb))


def _raise():
    raise ArithmeticError("a stand-in failed on purpose")


def _out_of_memory():
    raise torch.OutOfMemoryError("a stand-in ran out of memory on purpose")


def _wait():
    logging.info("a stand-in waits")
    while True:
        management.throw_exception_if_processing_interrupted()
        time.sleep(0.01)


_ACTIONS = {"none": lambda: None, "raise": _raise, "out_of_memory": _out_of_memory, "wait": _wait}


class Hold(io.ComfyNode):
    """Keeps the queue waiting until it is interrupted."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinHold", category=CATEGORY, is_output_node=True, inputs=[io.String.Input("nonce")]
        )

    @classmethod
    def execute(cls, nonce):
        _wait()


NODES = [Disturbance, Hold]
