"""Language models that answer questions: at an OpenAI-compatible endpoint or here, every answer kept in a file."""
