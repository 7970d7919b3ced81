"""Vision-language model: the stock Qwen2.5-VL with our attention function and explicit M-RoPE positions.

Every computation of a model in training goes through ``VLM.forward`` (or ``vision_features``), so that FSDP2 can wrap it as a
whole. A frozen, dense model decodes through its text decoder.

Shapes: B batch, P context, T tokens, Q tokens of one forward, V vocabulary, M chosen positions, E width.
"""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from echo_pl.backbone import attention, flash_attention
from echo_pl.backbone.attention import AttentionBackend, AttentionCall, QueryGroup
from echo_pl.backbone.kv_cache import BlockKVCache
from echo_pl.backbone.text_decoder import TextDecoder, reason_not_fusible
from echo_pl.diffusion.block_mask import AttentionRule
from echo_pl.diffusion.sequence import TrainingSequence
from echo_pl.structs import Images, SpecialTokens


def geometry_of(config: Qwen2_5_VLConfig) -> dict[str, int]:
    """Sizes that the shapes of weights do not show: two models may share all shapes and differ here."""
    text: Any = config.text_config
    vision: Any = config.vision_config
    return {
        "heads": text.num_attention_heads,
        "key_heads": text.num_key_value_heads,
        "vision_heads": vision.num_heads,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.spatial_merge_size,
    }


def weights_fingerprint(module: nn.Module) -> str:
    """Hash of all weights of a module; sharded parameters must be hashed before they are sharded."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_same_tower(stored: str, current: str) -> None:
    """Raise ValueError if stored vision features and a model have different towers, by their fingerprints."""
    if stored != current:
        raise ValueError(
            f"the stored vision features are of tower {stored}, this model has {current}: make them again with "
            "echo-pl corpus features, or set data.stored_features=null"
        )


class VLM(nn.Module):
    """``Qwen2_5_VLForConditionalGeneration`` that takes attention as a rule and positions as an argument."""

    reshard_after_forward: bool = True
    """Option of a sharded model, see :class:`echo_pl.backbone.sharding.ShardPolicy`."""
    whole_vision_fingerprint: str | None = None
    """Fingerprint of a sharded model's frozen vision tower, taken before sharding."""

    def __init__(
        self,
        network: Qwen2_5_VLForConditionalGeneration,
        special: SpecialTokens,
        train_attention: AttentionBackend = "sdpa",
        decode_attention: AttentionBackend = "split",
        pack_weights: bool = False,
        compile_layers: bool = False,
    ) -> None:
        """Wrap a network.

        Args:
            network: stock model; its config's image token must be the tokenizer's.
            special: special ids of the tokenizer.
            train_attention: backend of forwards without a cache.
            decode_attention: backend of prefill and of decode steps.
            pack_weights: keep a second copy of frozen bfloat16 weights in the CPU's own layout, to halve the time of decode steps.
            compile_layers: :meth:`prepare_to_train` compiles norms and feed-forward layers.

        Raises:
            ValueError: the image token or the vocabulary differs from the tokenizer's, or a backend's package is missing.
        """
        super().__init__()
        rows = network.model.language_model.embed_tokens.num_embeddings
        highest = max(special.pad, special.eos, special.mask, special.image, *special.never_sampled)
        if highest >= rows:
            raise ValueError(f"token id {highest} of the tokenizer is outside the model's vocabulary of {rows}")
        if network.config.image_token_id != special.image:
            raise ValueError(
                f"the model's image token is {network.config.image_token_id}, the tokenizer's is {special.image}: "
                "tokenizer and weights do not belong together"
            )
        if "flash_attn" in (train_attention, decode_attention):
            flash_attention.package()
        attention.register()
        network.set_attn_implementation({"text_config": attention.NAME, "vision_config": "sdpa"})
        self.network = network
        self.mask_embedding: nn.Parameter | None = None
        """Embedding of the mask token if it is trained beside a frozen embedding, see :mod:`echo_pl.backbone.lora`."""
        self.special = special
        self.train_attention = train_attention
        self.decode_attention = decode_attention
        self.pack_weights = pack_weights
        self.compile_layers = compile_layers
        self._text_decoder: TextDecoder | None = None
        self._vision_fingerprint: tuple[tuple[tuple[int, int], ...], str] | None = None

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.network.model.language_model.layers)

    @property
    def max_positions(self) -> int:
        """Longest sequence that the model's positions support."""
        return int(self.network.model.language_model.config.max_position_embeddings)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.network.model.language_model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.network.model.language_model.embed_tokens.weight.dtype

    @property
    def width(self) -> int:
        """E, the width of the language model and of projected image tokens."""
        return self.network.model.language_model.embed_tokens.embedding_dim

    @property
    def geometry(self) -> dict[str, int]:
        """See :func:`geometry_of`."""
        return geometry_of(self.network.config)

    def freeze_vision(self) -> None:
        """Freeze the vision tower and its projector (the merger inside it), for stages 2 and 3."""
        self.network.model.visual.requires_grad_(False)

    def prepare_to_train(self) -> None:
        """Compile norms and feed-forward layers of a model that is trained, if ``compile_layers`` is set.

        Whole layers are not: attention calls a rule or a cache, and under checkpointing torch.compile skips layers silently.
        """
        if self.compile_layers:
            for layer in self.network.model.language_model.layers:
                for part in (layer.input_layernorm, layer.post_attention_layernorm, layer.mlp):
                    part.compile(dynamic=True)

    def vision_features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """Projected image tokens of all images, (tokens, E), in the order of their placeholders."""
        visual = self.network.model.visual
        frozen = not any(p.requires_grad for p in visual.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            return visual(pixel_values.type(visual.dtype), grid_thw=image_grid_thw).pooler_output

    def image_features(self, images: Images) -> Tensor:
        """Projected image tokens (tokens, E), computed or stored; see :meth:`check_stored_features`."""
        if images.features is None:
            return self.vision_features(images.pixel_values, images.grid_thw)
        self.check_stored_features(images.vision_fingerprint)
        return images.features

    def check_stored_features(self, fingerprint: str | None) -> None:
        """Check the fingerprint of stored vision features against this model's tower.

        Raises:
            ValueError: the tower is another one, or is in training.
        """
        if fingerprint is None:
            return
        own = self.vision_fingerprint
        if own is None:
            raise ValueError("the vision tower is in training here, which stored features do not do: set data.stored_features=null")
        check_same_tower(fingerprint, own)

    @property
    def vision_fingerprint(self) -> str | None:
        """Hash of the vision tower's weights, projector included; None while they are in training."""
        if self.whole_vision_fingerprint is not None:
            return self.whole_vision_fingerprint
        visual = self.network.model.visual
        parameters = list(visual.parameters())
        if any(p.requires_grad for p in parameters):
            return None
        versions = tuple((p.data_ptr(), p._version) for p in parameters)  # loading weights changes one of the two
        if self._vision_fingerprint is None or self._vision_fingerprint[0] != versions:
            self._vision_fingerprint = versions, weights_fingerprint(visual)
        return self._vision_fingerprint[1]

    def context_positions(self, context_ids_BP: Tensor, lengths_B: Tensor, image_grid_thw: Tensor) -> tuple[Tensor, Tensor]:
        """M-RoPE positions of right-padded contexts.

        Returns:
            (3, B, P) positions (0 at padding), and (B,) the first position after each context.
        """
        B, P = context_ids_BP.shape
        ids, grid, lengths = context_ids_BP, image_grid_thw, lengths_B
        alike = B > 1 and bool((ids == ids[:1]).all()) and len(grid) % B == 0
        if alike and bool((grid == grid[: len(grid) // B].repeat(B, 1)).all()):
            ids, grid, lengths = ids[:1], grid[: len(grid) // B], lengths[:1]
        valid = torch.arange(P, device=ids.device)[None] < lengths[:, None]
        is_image = (ids == self.special.image).int()
        positions, _ = self.network.model.get_rope_index(
            ids, mm_token_type_ids=is_image, image_grid_thw=grid, attention_mask=valid.int()
        )
        next_B = positions.amax(dim=(0, 2)) + 1
        return positions.expand(-1, B, -1), next_B.expand(B)

    def sequence_positions(self, sequence: TrainingSequence, image_grid_thw: Tensor) -> Tensor:
        """(3, B, T) positions of a training sequence; all copies of a response token share one."""
        P = sequence.context_width
        positions, next_B = self.context_positions(sequence.input_ids_BT[:, :P], sequence.context_lengths_B, image_grid_thw)
        response_BT = next_B[:, None] + sequence.response_offset_T[None]
        return torch.cat([positions, response_BT.expand(3, -1, -1)], dim=2)

    def forward(
        self,
        input_ids_BQ: Tensor,
        positions_3BQ: Tensor,
        rule: AttentionRule | tuple[QueryGroup, ...],
        *,
        images: Images | None = None,
        cache: BlockKVCache | None = None,
        select: Tensor | int | None = None,
    ) -> Tensor:
        """One forward of the language model (and of the vision tower, if pixels are given).

        Args:
            input_ids_BQ: token ids, image placeholders included.
            positions_3BQ: M-RoPE positions.
            rule: attention rule of a whole sequence, or the query groups of a decode step.
            images: None or empty if the ids hold no placeholder.
            cache: written and read in place.
            select: positions of the logits: a bool mask (B, Q), the number of last positions, or None for all.

        Returns:
            Logits: (M, V) for a mask, (B, n, V) for a number, (B, Q, V) for None.
        """
        language_model = self.network.model.language_model
        embeds_BQE = language_model.embed_tokens(input_ids_BQ)
        if self.mask_embedding is not None:
            mask_BQ1 = (input_ids_BQ == self.special.mask)[..., None]
            embeds_BQE = torch.where(mask_BQ1, self.mask_embedding.to(embeds_BQE.dtype), embeds_BQE)
        if images is not None and len(images):
            image_BQ1 = (input_ids_BQ == self.special.image)[..., None]
            features = self.image_features(images)
            if int(image_BQ1.sum()) != len(features):
                raise ValueError(f"{int(image_BQ1.sum())} image placeholders for {len(features)} image tokens in a batch")
            embeds_BQE = embeds_BQE.masked_scatter(image_BQ1, features.to(embeds_BQE.dtype))
        if isinstance(rule, tuple):
            padding = None if cache is None else cache.padding
            call = AttentionCall(groups=rule, padding=padding, backend=self.decode_attention)
        else:
            call = AttentionCall(rule=rule, backend=self.train_attention if cache is None else self.decode_attention)
        hidden_BQE = language_model(
            inputs_embeds=embeds_BQE,
            position_ids=positions_3BQ,
            attention_mask={"full_attention": call},
            cache=cache,
            use_cache=False,
        ).last_hidden_state
        if isinstance(select, Tensor):
            hidden_BQE = hidden_BQE[select]
        elif select is not None:
            hidden_BQE = hidden_BQE[:, hidden_BQE.shape[1] - select :]
        return self.network.lm_head(hidden_BQE)

    def decode_step(
        self, ids_BQ: Tensor, first_B: Tensor, groups: tuple[QueryGroup, ...], cache: BlockKVCache, select: int
    ) -> Tensor:
        """One forward of text after a prefilled cache, through the text decoder where there is one, else the stock class.

        Args:
            ids_BQ: token ids.
            first_B: position of each sample's first query; the others follow one by one.
            groups: cached keys that the queries attend to.
            cache: written and read in place.
            select: number of last queries whose logits are returned.

        Returns:
            (B, select, V).
        """
        Q = ids_BQ.shape[1]
        decoder = self.text_decoder()
        if decoder is not None:
            return decoder.head(decoder(ids_BQ, first_B, cache, groups, select, self.decode_attention))
        positions_BQ = first_B[:, None] + torch.arange(Q, device=ids_BQ.device)
        return self(ids_BQ, positions_BQ.expand(3, -1, -1), groups, cache=cache, select=select)

    def text_decoder(self) -> TextDecoder | None:
        """Fused language model, built at the first call; None where the stock class must run.

        That is: in training (hooks must run), sharded, quantized or with adapters, and under autocast, which casts in its modules.
        """
        language_model = self.network.model.language_model
        embedding = language_model.embed_tokens.weight
        # Called at every step: the embedding stands for all weights here, and each is checked when the decoder is built.
        if embedding.requires_grad:
            return None
        if torch.is_autocast_enabled(embedding.device.type):
            if self.pack_weights:
                warnings.warn("pack_weights=true is not used under autocast: decode outside of it", stacklevel=2)
            return None
        if self._text_decoder is None or not self._text_decoder.fits:
            if any(parameter.requires_grad for parameter in language_model.parameters()):
                return None  # adapters
            reason = reason_not_fusible(language_model)
            if reason and self.pack_weights:
                raise ValueError(f"pack_weights=true is for models that decode in one piece: {reason}; set it to false")
            with torch.inference_mode(False), torch.no_grad():  # parameters joined in inference mode could not be trained again
                self._text_decoder = None if reason else TextDecoder(self.network, self.pack_weights)
        return self._text_decoder

    def modules_replaced(self) -> None:
        """Rebuild the text decoder before the next decode step, as modules of the language model were replaced."""
        self._text_decoder = None

    def __getstate__(self) -> dict[str, Any]:
        """State without the text decoder, which is built again: packed weights cannot be copied or pickled."""
        return {**self.__dict__, "_text_decoder": None}
