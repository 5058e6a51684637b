"""Writes a tiny LLaVA checkpoint that a real server loads and that always answers ``score 8``.

For tests and for trying the pipeline without a GPU: all three steps run, and the judge lets everything pass. Its layers
add nothing to the embedding of the last token, and its head knows one successor of each character of the answer. It
takes images, has a chat template, and needs neither torchvision nor a download.

    python -m navsim_recogdrive.pretraining.labelling.tiny_llava FOLDER
    transformers serve FOLDER --device cpu --port 8000
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

ANSWER = "score 8"
_END, _START, _IMAGE = "<|im_end|>", "<|im_start|>", "<image>"
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_llava(folder: Path) -> None:
    """Write the checkpoint to ``folder``, which is made."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
        Qwen2Config,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(characters)}, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=letters,
        eos_token=_END,
        pad_token="<|endoftext|>",
        additional_special_tokens=[_IMAGE, _START],
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=_TEMPLATE,
        num_additional_image_tokens=1,
    )
    small: Any = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model: Any = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**small, image_size=56, patch_size=14, projection_dim=32),
            text_config=Qwen2Config(
                **small, vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=32768
            ),
            image_token_index=tokenizer.convert_tokens_to_ids(_IMAGE),
            vision_feature_layer=-1,
        )
    )
    chain = [*tokenizer.encode("\n" + ANSWER), tokenizer.eos_token_id]
    assert len(set(chain)) == len(chain), "every character must have one successor"
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "language_model" in name and name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        embedding = model.get_input_embeddings().weight
        embedding.normal_()
        head = model.get_output_embeddings().weight
        head.zero_()
        for token, successor in pairwise(chain):
            head[successor] = embedding[token]
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a tiny LLaVA that answers 'score 8' to everything.")
    parser.add_argument("folder", type=Path)
    write_llava(parser.parse_args().folder)
