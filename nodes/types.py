"""Socket types of the pack."""

from comfy_api.latest import io

BudgetType = io.Custom("DITACCEL_BUDGET")
ProfileType = io.Custom("DITACCEL_PROFILE")
