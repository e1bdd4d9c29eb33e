"""What the tiny policies of the recipes share: their model, their tokenizer, and how they are taught."""
