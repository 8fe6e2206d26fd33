"""What the fuzzer mutates and reads, by name."""

from folder_targets import Checkpoints, Folders
from posterior_target import PosteriorFiles
from text_targets import Cards, Options, Results, TextData

TARGETS = {each.name: each for each in (PosteriorFiles, Folders, Checkpoints, Cards, TextData, Options, Results)}
