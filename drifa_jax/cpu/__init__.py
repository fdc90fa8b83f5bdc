"""What only XLA on CPUs needs: options of its compiler, and memory kept from step to step.

Nothing here changes a result. `drifa_jax.compilation` alone imports this room; to remove it,
delete the folder and let `compiler_options` and `training_options` there return `{}`,
`KeptMemory.run` call its program, and the two functions on memory do nothing.
"""
