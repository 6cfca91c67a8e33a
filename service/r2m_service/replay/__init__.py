"""Looking back: a journal's rewards recomputed, its aligns run again under other settings."""
