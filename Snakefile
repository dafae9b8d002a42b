# Text-to-image safety alignment, from prompts to report. The map of results/<run>/:
#
#   config.yaml                                the resolved config
#   model.json, judges.json, verdicts.json     what the target model, the judges and the rules are; that all can be had
#   judges/, answers/                          copies of judges' pickles; every answer of judges behind a server
#   externals/<name>.json                      what the models of others are; that they can be opened
#   concepts/<category>.parquet                source openai: concepts, which you may edit
#   journal/                                   source openai: every answer of the language model
#   prompts/<category>.parquet                 prompt pairs
#   rejected/<category>.parquet                what was not used, and why
#   pairs/<category>/<shard>.parquet           both images of each pair, same seed
#   features/<category>/<shard>.safetensors    VAE posteriors and text embeddings
#   harden/<round>/                            adversarial rounds: prompts found, the pairs that they add, features
#   retain/                                    the preservation term's prompts, images, features
#   experts/<category>/                        LoRA, training.parquet, README.md (also all-single)
#   merged/<strategy>/                         LoRA, README.md (co-merge: coactivation.parquet, fusion: covariances.safetensors)
#   baselines/<method>/weights.safetensors     weights of the network that ESD or UCE changed
#   tuning/<method>.parquet, .json             curve over the LoRA scale, and the scale chosen
#   benchmarks/<benchmark>.parquet             prompts to report on
#   attacks/<attack>/<method>.parquet          prompts found against a method (attacks.run)
#   images/<method>/<benchmark>/<shard>.parquet
#   scores/<method>/<benchmark>.parquet        per image
#   fid_reference.parquet                      features of real images (evaluate.fid_reference: a folder)
#   metrics.parquet                            the long table of all metrics
#   differences.parquet                        paired differences between methods
#   agreement.parquet, thresholds.parquet      how far verdicts agree; IP over each judge's threshold
#   ablation/<study>-<variant>/                experts trained otherwise, and their merge (snakemake ablation_<study>)
#   tables/  figures/  report.html             what people read
#   export/<method>/<format>/                  a method as files that others use, with a card (not of `rule all`)
#   timings/<rule>/                            seconds and memory of every job
#
# Methods and benchmarks are explained in README.md, config keys in config/README.md.


configfile: f"{workflow.current_basedir}/config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/hooks.smk"
include: "workflow/rules/checks.smk"
include: "workflow/rules/prompts.smk"
include: "workflow/rules/images.smk"
include: "workflow/rules/features.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/merging.smk"
include: "workflow/rules/baselines.smk"
include: "workflow/rules/attacks.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/ablation.smk"
include: "workflow/rules/export.smk"


if CFG.hardens:

    include: "workflow/rules/hardening.smk"


rule all:
    input:
        f"{RUN}/report.html",
        f"{RUN}/config.yaml",
