"""Turns datasets into token caches, and prompts into tokens: the part of training that is done by the field's own
libraries (Hugging Face tokenizers, jinja2, pyarrow). The trainer starts it by itself:

    python -m trainer.text prepare < spec.json      makes a token cache (trainer/data/token_cache.h)
    python -m trainer.text serve --tokenizer PATH   encodes and decodes, a JSON object a line

docs/data.md says what data files may look like.
"""
