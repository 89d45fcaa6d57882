# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_tqconv_global_optspecs
    string join \n q/quiet v/verbose color= threads= llama= witness= witness-patience= h/help V/version
end

function __fish_tqconv_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_tqconv_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_tqconv_using_subcommand
    set -l cmd (__fish_tqconv_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c tqconv -n "__fish_tqconv_needs_command" -l color -d 'When to paint results: auto paints on a terminal, as NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM allow' -r -f -a "auto\t''
always\t''
never\t''"
complete -c tqconv -n "__fish_tqconv_needs_command" -l threads -d 'Threads to work with [default: all processors]' -r
complete -c tqconv -n "__fish_tqconv_needs_command" -l llama -d 'The llama.cpp to verify and to compare with, in place of the one that is linked in: libllama, or the folder that holds it with its ggml libraries' -r -F
complete -c tqconv -n "__fish_tqconv_needs_command" -l witness -d 'The program whose child is llama.cpp, where it is not this one' -r -F
complete -c tqconv -n "__fish_tqconv_needs_command" -l witness-patience -d 'Seconds that llama.cpp may give no sign of life' -r
complete -c tqconv -n "__fish_tqconv_needs_command" -s q -l quiet -d 'Say nothing but results and errors'
complete -c tqconv -n "__fish_tqconv_needs_command" -s v -l verbose -d 'Say more: every check, the names of kernels'
complete -c tqconv -n "__fish_tqconv_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tqconv -n "__fish_tqconv_needs_command" -s V -l version -d 'Print version'
complete -c tqconv -n "__fish_tqconv_needs_command" -f -a "pack" -d 'Pack a checkpoint, or a GGUF file with ternary weights, into a GGUF file'
complete -c tqconv -n "__fish_tqconv_needs_command" -f -a "verify" -d 'Verify a GGUF file against what it was packed from, and what it computes against what it should'
complete -c tqconv -n "__fish_tqconv_needs_command" -f -a "run" -d 'Generate text with a GGUF file'
complete -c tqconv -n "__fish_tqconv_needs_command" -f -a "inspect" -d 'Show what a checkpoint or a GGUF file holds'
complete -c tqconv -n "__fish_tqconv_needs_command" -f -a "diff" -d 'Show how two GGUF files differ, or a GGUF file and a checkpoint'
complete -c tqconv -n "__fish_tqconv_needs_command" -f -a "bench" -d 'Measure speed, ours and llama.cpp\'s, in one run'
complete -c tqconv -n "__fish_tqconv_needs_command" -f -a "completions" -d 'Print the completion script of a shell'
complete -c tqconv -n "__fish_tqconv_needs_command" -f -a "man" -d 'Write a man page of each command into a folder'
complete -c tqconv -n "__fish_tqconv_needs_command" -f -a "chat-template" -d 'Be the process that applies a chat template'
complete -c tqconv -n "__fish_tqconv_needs_command" -f -a "llama.cpp-witness" -d 'Be the process that runs llama.cpp'
complete -c tqconv -n "__fish_tqconv_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l for -d 'Where the file is to run' -r -f -a "any\t'llama.cpp on every backend, and Ollama'
cpu\t'llama.cpp on x86 processors: adds TQ2_0'
gpu\t'llama.cpp on GPUs: adds Q2_0'
arm\t'llama.cpp on Arm processors: adds Q2_0'
ollama\t'Ollama: as any, held to Ollama\'s own rules, with a Modelfile'"
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l max-nmse -d 'The relative squared error that storing a matrix may add' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l max-kld -d 'Choose the types by what they do to the output: the smallest file whose mean KLD on a text is at most this, in nats a token' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l text -d 'The text that --max-kld measures on, a file of UTF-8 [default: a built-in one]' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l type -d 'Store all linears as this type: tq2_0, tq1_0, q2_0, q2_k, q4_0, q8_0, f16, bf16 or f32' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l tensor-type -d 'Store the linears whose GGUF name contains TEXT as TYPE, for example ffn_down=q4_0; can be repeated' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l embedding -d 'Store embedding and head as this type: keep (the checkpoint\'s), f32, f16, bf16, q8_0, q6_k or q4_k; where they are ternary themselves, tq2_0, tq1_0, q2_0, q2_k or q4_0' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l config -d 'config.json, if it is not beside the weights' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l tokenizer -d 'tokenizer.json, tokenizer.model or their folder, if not beside the weights' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l tokenizer-pre -d 'llama.cpp\'s name of the pre-tokenizer, if it is not recognised' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l trained-as -l quant-method -d 'How it was trained, where config.json does not say so or is wrong: ultraquantv2, ultraquantv3, absmean, sherry, twn, lsq, seq (ParetoQ) or bitnet' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l granularity -d 'What shares a scale; overrides config.json: per_group, per_channel or per_tensor' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l group-size -d 'Weights a scale for per_group; overrides config.json' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l lambda -l eps -d 'The factor of the dead zone, over `eps` of config.json' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l metadata -d 'Set a key of the output, for example general.name="My Model"; can be repeated' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l manifest -d 'Write a manifest, too: the sha256 of each file that was written or read, the request, what was lost' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l split-max-size -d 'Write several files of at most this size, for example 2G or 500M, named as llama.cpp\'s gguf-split names them' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l color -d 'When to paint results: auto paints on a terminal, as NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM allow' -r -f -a "auto\t''
always\t''
never\t''"
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l threads -d 'Threads to work with [default: all processors]' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l llama -d 'The llama.cpp to verify and to compare with, in place of the one that is linked in: libllama, or the folder that holds it with its ggml libraries' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l witness -d 'The program whose child is llama.cpp, where it is not this one' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l witness-patience -d 'Seconds that llama.cpp may give no sign of life' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l exact -d 'Lose nothing: the same as --max-nmse 0'
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l drop-biases -d 'Leave out biases that the model\'s architecture in llama.cpp has no place for: the output changes'
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l hash -d 'Note the sha256 of each input file in the output: takes about a second per 2 GB of the largest file'
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l card -d 'Write README.md beside the output, too: a card for the Hugging Face Hub, with license, language and base model as the checkpoint\'s own card has them'
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l force -d 'Replace the output if it is there'
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l dry-run -d 'Decide everything, show it, write nothing'
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -l json -d 'Print JSON'
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -s q -l quiet -d 'Say nothing but results and errors'
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -s v -l verbose -d 'Say more: every check, the names of kernels'
complete -c tqconv -n "__fish_tqconv_using_subcommand pack" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l against -d 'What it was packed from: a checkpoint (a folder, a model.safetensors, or a model.safetensors.index.json), or a GGUF file' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l levels -d 'Which levels, as in 1,2,4 or 1-3 [default: 1-4]' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l for -d 'Check the file by the stricter rules of a program, too' -r -f -a "ollama\t'`ollama create`'"
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l max-nmse -d 'The relative squared error that storing a matrix may have added' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l max-kld -d 'The mean KLD from the checkpoint that an engine may have, in nats a token, beside the limits that follow from the model' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l text -d 'What the engines are to predict: the text of a file' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l prompt -d 'What the engines are to predict' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l tokens -d 'Predictions to compare at most' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l window -d 'Tokens that see each other: the text is cut into windows of so many' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l activations -d 'How many activations share a scale when our engine rounds them to 8 bits' -r -f -a "llama.cpp\t'As many as in llama.cpp: 256 with TQ1_0, TQ2_0 and the K types, 32 with others'
per-64\t'At most 64'
per-32\t'At most 32: closest to the checkpoint'
fast\t'Up to 256 with Q2_0 and Q4_0, too: least work'"
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l cache-type-k -d 'What our engine keeps the keys of the context in' -r -f -a "f32\t'As they are computed'
f16\t'Half the memory: llama.cpp\'s own default'
q8_0\t'A quarter and a bit: 32 numbers to a scale, for heads of a multiple of 32'"
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l cache-type-v -d 'What it keeps the values in' -r -f -a "f32\t'As they are computed'
f16\t'Half the memory: llama.cpp\'s own default'
q8_0\t'A quarter and a bit: 32 numbers to a scale, for heads of a multiple of 32'"
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l config -d 'config.json, if it is not beside the weights' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l tokenizer -d 'tokenizer.json, tokenizer.model or their folder, if not beside the weights' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l tokenizer-pre -d 'llama.cpp\'s name of the pre-tokenizer, if it is not recognised' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l trained-as -l quant-method -d 'How it was trained, where config.json does not say so or is wrong: ultraquantv2, ultraquantv3, absmean, sherry, twn, lsq, seq (ParetoQ) or bitnet' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l granularity -d 'What shares a scale; overrides config.json: per_group, per_channel or per_tensor' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l group-size -d 'Weights a scale for per_group; overrides config.json' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l lambda -l eps -d 'The factor of the dead zone, over `eps` of config.json' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l metadata -d 'A key that `pack` was told to set, and its value; can be repeated' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l attest -d 'Write a statement that can be signed, too: digests, checks, limits, engines (in-toto, docs/attestation.md)' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l report -d 'Write a page to look at, too' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l card -d 'Put the figures into the README.md that `pack --card` has written' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l color -d 'When to paint results: auto paints on a terminal, as NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM allow' -r -f -a "auto\t''
always\t''
never\t''"
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l threads -d 'Threads to work with [default: all processors]' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l llama -d 'The llama.cpp to verify and to compare with, in place of the one that is linked in: libllama, or the folder that holds it with its ggml libraries' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l witness -d 'The program whose child is llama.cpp, where it is not this one' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l witness-patience -d 'Seconds that llama.cpp may give no sign of life' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l speed -d 'Level 5, too: time both engines'
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l reproducible -d 'A statement without times and the command: the same bytes from the same files on the same machine'
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -l json -d 'Print JSON'
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -s q -l quiet -d 'Say nothing but results and errors'
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -s v -l verbose -d 'Say more: every check, the names of kernels'
complete -c tqconv -n "__fish_tqconv_using_subcommand verify" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -s p -l prompt -d 'The same' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -s f -l file -d 'The same, in a file' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l system -l system-prompt -d 'What a model that answers is told first' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -s n -l tokens -d 'Most tokens to generate; -1: until the model ends the text, or the context is full' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -s c -l ctx-size -d 'Tokens that the context holds [default: as many as are needed, 4096 where that is not known]' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l temp -l temperature -d 'How freely tokens are drawn; 0 takes the most likely one each time' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l top-k -d 'Draw from so many most likely tokens; 0: all' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l top-p -d 'Draw from the fewest tokens that together have this probability' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l min-p -d 'Draw from tokens that have at least this share of the most likely one\'s probability' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l repeat-penalty -d 'What the logits of tokens that came lately are divided by; 1: nothing' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l repeat-last-n -d 'How many tokens came lately' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l seed -d 'Where the draws start: the same seed draws the same tokens' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l engine -d 'What computes' -r -f -a "native\t'Packed weights on our kernels'
llama.cpp\t'llama.cpp, as it was built into this program or named by --llama'"
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l activations -d 'How many activations share a scale when our engine rounds them to 8 bits' -r -f -a "llama.cpp\t'As many as in llama.cpp: 256 with TQ1_0, TQ2_0 and the K types, 32 with others'
per-64\t'At most 64'
per-32\t'At most 32: closest to the checkpoint'
fast\t'Up to 256 with Q2_0 and Q4_0, too: least work'"
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l cache-type-k -d 'What our engine keeps the keys of the context in' -r -f -a "f32\t'As they are computed'
f16\t'Half the memory: llama.cpp\'s own default'
q8_0\t'A quarter and a bit: 32 numbers to a scale, for heads of a multiple of 32'"
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l cache-type-v -d 'What it keeps the values in' -r -f -a "f32\t'As they are computed'
f16\t'Half the memory: llama.cpp\'s own default'
q8_0\t'A quarter and a bit: 32 numbers to a scale, for heads of a multiple of 32'"
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l color -d 'When to paint results: auto paints on a terminal, as NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM allow' -r -f -a "auto\t''
always\t''
never\t''"
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l threads -d 'Threads to work with [default: all processors]' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l llama -d 'The llama.cpp to verify and to compare with, in place of the one that is linked in: libllama, or the folder that holds it with its ggml libraries' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l witness -d 'The program whose child is llama.cpp, where it is not this one' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l witness-patience -d 'Seconds that llama.cpp may give no sign of life' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l no-chat -d 'Continue the text as it is, although the file has a chat template'
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l special -d 'Take special tokens that a text to be continued writes out, such as <|user|>, for those tokens'
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -l json -d 'Print JSON, at the end'
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -s q -l quiet -d 'Say nothing but results and errors'
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -s v -l verbose -d 'Say more: every check, the names of kernels'
complete -c tqconv -n "__fish_tqconv_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tqconv -n "__fish_tqconv_using_subcommand inspect" -l color -d 'When to paint results: auto paints on a terminal, as NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM allow' -r -f -a "auto\t''
always\t''
never\t''"
complete -c tqconv -n "__fish_tqconv_using_subcommand inspect" -l threads -d 'Threads to work with [default: all processors]' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand inspect" -l llama -d 'The llama.cpp to verify and to compare with, in place of the one that is linked in: libllama, or the folder that holds it with its ggml libraries' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand inspect" -l witness -d 'The program whose child is llama.cpp, where it is not this one' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand inspect" -l witness-patience -d 'Seconds that llama.cpp may give no sign of life' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand inspect" -s a -l all -d 'List every tensor and every key, and in JSON the values of lists'
complete -c tqconv -n "__fish_tqconv_using_subcommand inspect" -l json -d 'Print JSON'
complete -c tqconv -n "__fish_tqconv_using_subcommand inspect" -s q -l quiet -d 'Say nothing but results and errors'
complete -c tqconv -n "__fish_tqconv_using_subcommand inspect" -s v -l verbose -d 'Say more: every check, the names of kernels'
complete -c tqconv -n "__fish_tqconv_using_subcommand inspect" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tqconv -n "__fish_tqconv_using_subcommand diff" -l config -d 'config.json, if it is not beside the weights' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand diff" -l tokenizer -d 'tokenizer.json, tokenizer.model or their folder, if not beside the weights' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand diff" -l tokenizer-pre -d 'llama.cpp\'s name of the pre-tokenizer, if it is not recognised' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand diff" -l trained-as -l quant-method -d 'How it was trained, where config.json does not say so or is wrong: ultraquantv2, ultraquantv3, absmean, sherry, twn, lsq, seq (ParetoQ) or bitnet' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand diff" -l granularity -d 'What shares a scale; overrides config.json: per_group, per_channel or per_tensor' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand diff" -l group-size -d 'Weights a scale for per_group; overrides config.json' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand diff" -l lambda -l eps -d 'The factor of the dead zone, over `eps` of config.json' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand diff" -l max-nmse -d 'Take tensors for equal whose NMSE is at most this, whatever their types' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand diff" -l color -d 'When to paint results: auto paints on a terminal, as NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM allow' -r -f -a "auto\t''
always\t''
never\t''"
complete -c tqconv -n "__fish_tqconv_using_subcommand diff" -l threads -d 'Threads to work with [default: all processors]' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand diff" -l llama -d 'The llama.cpp to verify and to compare with, in place of the one that is linked in: libllama, or the folder that holds it with its ggml libraries' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand diff" -l witness -d 'The program whose child is llama.cpp, where it is not this one' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand diff" -l witness-patience -d 'Seconds that llama.cpp may give no sign of life' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand diff" -l json -d 'Print JSON'
complete -c tqconv -n "__fish_tqconv_using_subcommand diff" -s q -l quiet -d 'Say nothing but results and errors'
complete -c tqconv -n "__fish_tqconv_using_subcommand diff" -s v -l verbose -d 'Say more: every check, the names of kernels'
complete -c tqconv -n "__fish_tqconv_using_subcommand diff" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l prefill -d 'Tokens of a prefill, with a model' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l decode -d 'Tokens decoded after it, with a model' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l runs -d 'Runs of each engine, with a model' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l shape -d 'Shapes of the weight matrices' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l type -d 'Types of the weights' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l tokens -d 'Tokens in one product; 1 is decode' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l thread-counts -d 'Numbers of threads to measure with, the same on both sides' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l isa -d 'Instructions for our side: scalar, avx2, avxvnni, avx512vnni, avx512lookup, amx, neon-dotprod or neon-i8mm' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l activations -d 'How many activations share a scale when our engine rounds them to 8 bits' -r -f -a "llama.cpp\t'As many as in llama.cpp: 256 with TQ1_0, TQ2_0 and the K types, 32 with others'
per-64\t'At most 64'
per-32\t'At most 32: closest to the checkpoint'
fast\t'Up to 256 with Q2_0 and Q4_0, too: least work'"
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l cache-type-k -d 'What our engine keeps the keys of the context in' -r -f -a "f32\t'As they are computed'
f16\t'Half the memory: llama.cpp\'s own default'
q8_0\t'A quarter and a bit: 32 numbers to a scale, for heads of a multiple of 32'"
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l cache-type-v -d 'What it keeps the values in' -r -f -a "f32\t'As they are computed'
f16\t'Half the memory: llama.cpp\'s own default'
q8_0\t'A quarter and a bit: 32 numbers to a scale, for heads of a multiple of 32'"
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l seconds -d 'Seconds for each case' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l color -d 'When to paint results: auto paints on a terminal, as NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM allow' -r -f -a "auto\t''
always\t''
never\t''"
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l threads -d 'Threads to work with [default: all processors]' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l llama -d 'The llama.cpp to verify and to compare with, in place of the one that is linked in: libllama, or the folder that holds it with its ggml libraries' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l witness -d 'The program whose child is llama.cpp, where it is not this one' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l witness-patience -d 'Seconds that llama.cpp may give no sign of life' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l hot -d 'Keep one matrix in the cache; without this many are read from memory in turn'
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -l json -d 'Print JSON'
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -s q -l quiet -d 'Say nothing but results and errors'
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -s v -l verbose -d 'Say more: every check, the names of kernels'
complete -c tqconv -n "__fish_tqconv_using_subcommand bench" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tqconv -n "__fish_tqconv_using_subcommand completions" -l color -d 'When to paint results: auto paints on a terminal, as NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM allow' -r -f -a "auto\t''
always\t''
never\t''"
complete -c tqconv -n "__fish_tqconv_using_subcommand completions" -l threads -d 'Threads to work with [default: all processors]' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand completions" -l llama -d 'The llama.cpp to verify and to compare with, in place of the one that is linked in: libllama, or the folder that holds it with its ggml libraries' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand completions" -l witness -d 'The program whose child is llama.cpp, where it is not this one' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand completions" -l witness-patience -d 'Seconds that llama.cpp may give no sign of life' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand completions" -s q -l quiet -d 'Say nothing but results and errors'
complete -c tqconv -n "__fish_tqconv_using_subcommand completions" -s v -l verbose -d 'Say more: every check, the names of kernels'
complete -c tqconv -n "__fish_tqconv_using_subcommand completions" -s h -l help -d 'Print help'
complete -c tqconv -n "__fish_tqconv_using_subcommand man" -l color -d 'When to paint results: auto paints on a terminal, as NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM allow' -r -f -a "auto\t''
always\t''
never\t''"
complete -c tqconv -n "__fish_tqconv_using_subcommand man" -l threads -d 'Threads to work with [default: all processors]' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand man" -l llama -d 'The llama.cpp to verify and to compare with, in place of the one that is linked in: libllama, or the folder that holds it with its ggml libraries' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand man" -l witness -d 'The program whose child is llama.cpp, where it is not this one' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand man" -l witness-patience -d 'Seconds that llama.cpp may give no sign of life' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand man" -s q -l quiet -d 'Say nothing but results and errors'
complete -c tqconv -n "__fish_tqconv_using_subcommand man" -s v -l verbose -d 'Say more: every check, the names of kernels'
complete -c tqconv -n "__fish_tqconv_using_subcommand man" -s h -l help -d 'Print help'
complete -c tqconv -n "__fish_tqconv_using_subcommand chat-template" -l color -d 'When to paint results: auto paints on a terminal, as NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM allow' -r -f -a "auto\t''
always\t''
never\t''"
complete -c tqconv -n "__fish_tqconv_using_subcommand chat-template" -l threads -d 'Threads to work with [default: all processors]' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand chat-template" -l llama -d 'The llama.cpp to verify and to compare with, in place of the one that is linked in: libllama, or the folder that holds it with its ggml libraries' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand chat-template" -l witness -d 'The program whose child is llama.cpp, where it is not this one' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand chat-template" -l witness-patience -d 'Seconds that llama.cpp may give no sign of life' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand chat-template" -s q -l quiet -d 'Say nothing but results and errors'
complete -c tqconv -n "__fish_tqconv_using_subcommand chat-template" -s v -l verbose -d 'Say more: every check, the names of kernels'
complete -c tqconv -n "__fish_tqconv_using_subcommand chat-template" -s h -l help -d 'Print help'
complete -c tqconv -n "__fish_tqconv_using_subcommand llama.cpp-witness" -l color -d 'When to paint results: auto paints on a terminal, as NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM allow' -r -f -a "auto\t''
always\t''
never\t''"
complete -c tqconv -n "__fish_tqconv_using_subcommand llama.cpp-witness" -l threads -d 'Threads to work with [default: all processors]' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand llama.cpp-witness" -l llama -d 'The llama.cpp to verify and to compare with, in place of the one that is linked in: libllama, or the folder that holds it with its ggml libraries' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand llama.cpp-witness" -l witness -d 'The program whose child is llama.cpp, where it is not this one' -r -F
complete -c tqconv -n "__fish_tqconv_using_subcommand llama.cpp-witness" -l witness-patience -d 'Seconds that llama.cpp may give no sign of life' -r
complete -c tqconv -n "__fish_tqconv_using_subcommand llama.cpp-witness" -s q -l quiet -d 'Say nothing but results and errors'
complete -c tqconv -n "__fish_tqconv_using_subcommand llama.cpp-witness" -s v -l verbose -d 'Say more: every check, the names of kernels'
complete -c tqconv -n "__fish_tqconv_using_subcommand llama.cpp-witness" -s h -l help -d 'Print help'
complete -c tqconv -n "__fish_tqconv_using_subcommand help; and not __fish_seen_subcommand_from pack verify run inspect diff bench completions man chat-template llama.cpp-witness help" -f -a "pack" -d 'Pack a checkpoint, or a GGUF file with ternary weights, into a GGUF file'
complete -c tqconv -n "__fish_tqconv_using_subcommand help; and not __fish_seen_subcommand_from pack verify run inspect diff bench completions man chat-template llama.cpp-witness help" -f -a "verify" -d 'Verify a GGUF file against what it was packed from, and what it computes against what it should'
complete -c tqconv -n "__fish_tqconv_using_subcommand help; and not __fish_seen_subcommand_from pack verify run inspect diff bench completions man chat-template llama.cpp-witness help" -f -a "run" -d 'Generate text with a GGUF file'
complete -c tqconv -n "__fish_tqconv_using_subcommand help; and not __fish_seen_subcommand_from pack verify run inspect diff bench completions man chat-template llama.cpp-witness help" -f -a "inspect" -d 'Show what a checkpoint or a GGUF file holds'
complete -c tqconv -n "__fish_tqconv_using_subcommand help; and not __fish_seen_subcommand_from pack verify run inspect diff bench completions man chat-template llama.cpp-witness help" -f -a "diff" -d 'Show how two GGUF files differ, or a GGUF file and a checkpoint'
complete -c tqconv -n "__fish_tqconv_using_subcommand help; and not __fish_seen_subcommand_from pack verify run inspect diff bench completions man chat-template llama.cpp-witness help" -f -a "bench" -d 'Measure speed, ours and llama.cpp\'s, in one run'
complete -c tqconv -n "__fish_tqconv_using_subcommand help; and not __fish_seen_subcommand_from pack verify run inspect diff bench completions man chat-template llama.cpp-witness help" -f -a "completions" -d 'Print the completion script of a shell'
complete -c tqconv -n "__fish_tqconv_using_subcommand help; and not __fish_seen_subcommand_from pack verify run inspect diff bench completions man chat-template llama.cpp-witness help" -f -a "man" -d 'Write a man page of each command into a folder'
complete -c tqconv -n "__fish_tqconv_using_subcommand help; and not __fish_seen_subcommand_from pack verify run inspect diff bench completions man chat-template llama.cpp-witness help" -f -a "chat-template" -d 'Be the process that applies a chat template'
complete -c tqconv -n "__fish_tqconv_using_subcommand help; and not __fish_seen_subcommand_from pack verify run inspect diff bench completions man chat-template llama.cpp-witness help" -f -a "llama.cpp-witness" -d 'Be the process that runs llama.cpp'
complete -c tqconv -n "__fish_tqconv_using_subcommand help; and not __fish_seen_subcommand_from pack verify run inspect diff bench completions man chat-template llama.cpp-witness help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
