"""The lab: papers, claims, protocols and arms; statistics; the runner and its engines; the store; the benchmark."""
