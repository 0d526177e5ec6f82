"""The verbs that use a tuned model: what each can be asked."""
