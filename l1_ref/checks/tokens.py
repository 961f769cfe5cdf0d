"""The checks of 01_tokens, in the order of the notebook."""

from l1_ref.checks import batches, pairs, texts, vocabulary

EXERCISES = (*pairs.EXERCISES, *vocabulary.EXERCISES, texts.ENCODE, *batches.EXERCISES, texts.DECODE)
