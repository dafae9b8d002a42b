from safetydpo.cli import inference_main

inference_main()
