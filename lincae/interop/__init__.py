"""Other models and other formats: models by name, released weights, codecs, adapters."""
