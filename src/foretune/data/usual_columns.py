"""The names by which columns usually go, in the order in which they are looked for; in lower case."""

from __future__ import annotations

TURN_COLUMNS = ("messages", "conversations", "conversation")
SYSTEM_COLUMNS = ("system", "system_prompt")
ALPACA_CONTEXT = ("input", "context")
ALPACA_ANSWER = ("output", "response")
PROMPTS = ("prompt", "input", "inputs", "problem", "user")
COMPLETIONS = ("completion", "solution", "response", "answer", "output", "targets", "assistant")
QUESTIONS = ("question", "query")
QUESTION_CONTEXT = ("context", "passage")
QUESTION_ANSWER = ("answer", "answers", "response")
PAIRS = (("source", "target"), ("src", "tgt"))
SUMMARIES = (("document", "summary"), ("article", "highlights"), ("dialogue", "summary"), ("text", "summary"))
TEXTS = ("text", "sentence", "review", "content", "tweet", "comment", "title")
TEXT_PAIRS = (("text", "text_pair"), ("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"),
              ("sentence_a", "sentence_b"), ("text_a", "text_b"), ("text1", "text2"), ("question", "sentence"),
              ("query", "passage"), ("query", "document"))  # fmt: skip
LABELS = ("label_text", "label", "labels", "class", "category", "sentiment", "intent", "rating", "stars", "score")
LABEL_ENDINGS = ("_label", "_labels")
PAIR_LABELS = ("gold_label", "is_duplicate", "similarity", "similarity_score", "relevance", "entailment")
