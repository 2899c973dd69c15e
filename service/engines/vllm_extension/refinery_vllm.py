"""Runs inside vLLM's workers (``--worker-extension-cls refinery_vllm.ReloadExtension``); imports nothing of ours."""

from typing import Any


class ReloadExtension:
    """Methods that ``/collective_rpc`` can call on every worker."""

    def load_checkpoint(self: Any, folder: str) -> None:
        """Replaces all weights by those of the folder, the output head included.

        Where vLLM packs weights for its kernels (0.31.0 on a CPU does), ``reload_weights`` leaves the packed copy of
        a head that is tied to the input embeddings as it was, and the policy answers with a head one version old.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        self.reload_weights(weights_path=folder)
        for module in self.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
