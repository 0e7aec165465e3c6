"""Training: a recipe (YAML) and data in, a safetensors checkpoint out. See :func:`leanconv.train.loop.train`."""
