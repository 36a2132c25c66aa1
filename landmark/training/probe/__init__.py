"""The probe: features of the start weights, computed once per image, and a classifier that is fitted to them. Also teachers."""
