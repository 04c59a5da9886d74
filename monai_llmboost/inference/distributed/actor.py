# SPDX-License-Identifier: Apache-2.0
"""The class of the actors. Ray sends it as code, so that it also answers on a machine without this package."""

from __future__ import annotations

from typing import Any


def actor_class() -> type:
    """Return the class; it uses no name of this module, because Ray would look for it on the other machine."""

    class PredictActor:
        """Starts a ``BatchWorker`` and passes calls to it; errors are answers, because Ray logs those it catches."""

        def start(self, version: str, setup: bytes) -> Any:
            """Load the network; return the device and the machine's ID, or a sentence that says why this failed."""
            import os
            import pickle
            import socket

            # Output of libraries may contain names of patients, and Ray keeps output in files.
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            host = socket.gethostname()
            try:
                from monai_llmboost import __version__
            except ImportError:
                return f"monai-llmboost is not installed for Ray on {host}: install version {version} there"
            if __version__ != version:
                return (
                    f"monai-llmboost on {host} has the version {__version__}, and the process that started the run "
                    f"{version}: install the same everywhere"
                )
            from monai_llmboost.bundle import root_cause
            from monai_llmboost.inference.distributed.worker import BatchWorker, is_portable

            self.is_portable = is_portable
            try:
                self.worker = BatchWorker(pickle.loads(setup))
            except Exception as error:
                cause = root_cause(error)
                return f"an actor on {host} cannot start: {str(cause) or type(cause).__name__}"
            import ray

            return self.worker.device, ray.get_runtime_context().get_node_id()

        def predict(self, *content: Any) -> Any:
            """Return the rows of a unit, or the error that ends the run."""
            try:
                return self.worker.predict(*content)
            except Exception as error:
                return error if self.is_portable(error) else RuntimeError(f"{type(error).__name__}: {error}")

    return PredictActor
