"""Labels: vocabularies of classes (shipped or user-supplied), surface forms of labels, prompt templates."""

from magicseg.labels.templates import load_templates
from magicseg.labels.vocabulary import BACKGROUND, IGNORE, Label, Vocabulary
from magicseg.labels.vocabulary_files import is_label_file, load_vocabulary, parse_labels, vocabulary_names

__all__ = [
    "BACKGROUND",
    "IGNORE",
    "Label",
    "Vocabulary",
    "is_label_file",
    "load_templates",
    "load_vocabulary",
    "parse_labels",
    "vocabulary_names",
]
