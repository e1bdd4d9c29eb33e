"""A sandbox: runs a program that nobody trusts, and says how it ended and what it wrote.

`kinds` has what a recipe can name. What runs inside needs the standard library only, so that it starts fast; one idea a file:
`namespaces`, `filesystem`, `limits`, `system_calls`, `inside` (pid 1), `watch` (from outside), `zygote` (starts them), `local` (asks it).
`remote` is a service elsewhere, `examination` the program that puts tests to a program.
"""
