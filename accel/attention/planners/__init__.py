"""One file per attention pattern. A planner is a function
`plan(q, k, layout, budget, warm_start, *, scale, backend) -> SparsePlan`."""

from . import svg2

PLANNERS = {"svg2": svg2.plan}
