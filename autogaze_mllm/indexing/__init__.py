"""Many videos, gazed once for all later questions: what is to do, who does it, and what was done."""
