"""Skills whose right answers are of very unlike lengths: the policy that the recipe trains, and what makes it."""
