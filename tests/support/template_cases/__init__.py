"""The official templates that a server executes on tiny models, by maker."""

from dit_accel.tests.support.template_cases import hunyuan, kandinsky, lightricks, minimax, plain, wan
from dit_accel.tests.support.template_cases.case import STANDINS, Case

__all__ = ["CASES", "EVERY_PATTERN", "STANDINS", "Case"]

# Each runs with all patterns: between them they cover one model, two experts and control videos.
EVERY_PATTERN = [*wan.EVERY_PATTERN, *hunyuan.EVERY_PATTERN]
# Each runs with one pattern, which take turns.
CASES = [*wan.CASES, *hunyuan.CASES, *kandinsky.CASES, *lightricks.CASES, *minimax.CASES, *plain.CASES]
