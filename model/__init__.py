"""Speech to text with FastConformer models: waveforms in, transcripts out. Knows no HTTP and no NeMo."""
