"""Language models as judges of completions, behind any endpoint that speaks OpenAI's chat interface."""
