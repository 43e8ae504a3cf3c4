//! Embedding shards on disk: safetensors files, read through memory maps and written atomically.
