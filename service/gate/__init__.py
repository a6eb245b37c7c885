"""The gate: statistics, guards and the rule that folds findings into a verdict. numpy and scipy only."""
