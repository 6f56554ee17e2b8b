"""Imported once, by the server that a survey's processes are forked from."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
import transformers.modeling_utils
import transformers.models.auto.modeling_auto
import transformers.models.clip.modeling_clip
import transformers.models.llama.modeling_llama

import experiments.survey.value  # noqa: F401

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
