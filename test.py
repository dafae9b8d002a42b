from safetydpo.cli import scores_main

scores_main()
