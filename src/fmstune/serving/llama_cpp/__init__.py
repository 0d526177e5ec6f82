"""A model becomes one GGUF file, which llama.cpp and Ollama run."""
