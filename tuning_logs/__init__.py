"""Shipped tuning records: ``<preset>/<model>.<searcher>.jsonl`` and their run files."""
