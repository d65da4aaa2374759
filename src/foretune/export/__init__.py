"""What leaves a run: the adapter folder, a merged model, a GGUF file; each loads elsewhere and answers as evaluated."""
