// Package wire translates between OpenAI's API and Ollama's own. It is pure:
// bytes and values in, bytes and values out, no clock and no I/O.
//
// A chat goes through it like this; other requests do likewise:
//
//  1. [DecodeChat] reads the body in one strict scan into a [Chat].
//  2. [Chat.Request] turns it, with the [Params] that routing decided, into
//     Ollama's request; [Chat.AppendKey] into the cache's key.
//  3. A [Recorder] turns the lines of Ollama's answer into chunks: bytes whose
//     meaning only this package knows, which can be kept and shared.
//  4. An [Answer] writes chunks for one client, as the events of a stream or
//     as one body. Both are made of the same chunks, so a stream and a body can
//     share one recording.
//
// # Fields with effect
//
//	model                     may be a virtual name; answered under the same name
//	messages                  text, text parts, refusal parts; images as data URLs; tool calls and
//	                          results; role developer is system, function is tool; adjacent system
//	                          messages are joined
//	stream                    null and absent are false
//	stream_options            include_usage
//	n                         as so many requests; choice i has seed+i
//	max_completion_tokens     the smaller of the two counts; 0 is unset
//	max_tokens
//	temperature, top_p, frequency_penalty, presence_penalty, seed, stop
//	top_k, min_p, repeat_penalty
//	                          not OpenAI's, but Ollama's
//	logprobs, top_logprobs
//	reasoning_effort          on models that think; also as reasoning.effort
//	response_format           json_object and json_schema bind the model's grammar; the answer is
//	                          checked, against the schema where strict is true
//	tools, tool_choice        functions only
//	parallel_tool_calls       false keeps the first call
//	functions, function_call  unless tools are given
//	service_tier, metadata, user
//	                          for the caller of this package, none for the model
//
// # Fields accepted without effect
//
// Named in [Chat.Ignored], whatever their value:
//
//	audio, logit_bias, modalities, moderation, prediction, prompt_cache_key,
//	prompt_cache_options, prompt_cache_retention, safety_identifier, store,
//	stream_options.include_obfuscation, verbosity, web_search_options,
//	name in a message that is not a tool's,
//	Ollama's format, keep_alive, num_ctx, options, think,
//	and every field not known here.
//
// Parts of earlier answers that clients send back are dropped in silence:
// reasoning, reasoning_content, thinking, refusal, audio and annotations of a
// message.
//
// # Responses
//
// [DecodeResponses] reads a [Chat] in other words: instructions and input for
// messages, max_output_tokens, text.format for response_format, tools and
// tool_choice in their flat form, parallel_tool_calls, reasoning.effort, and of
// the rest what chats have. So both share recordings. Nothing is stored: store
// true has no effect, and what needs something stored is refused
// (previous_response_id, conversation, prompt, background, items that are
// references, tools that OpenAI runs). Reasoning items are passed over; those of
// an answer tell what a model thought, asked for or not.
//
// Without effect, and named, are include, max_tool_calls, top_logprobs,
// context_management, moderation, safety_identifier, prompt_cache_key,
// prompt_cache_retention, prompt_cache_options, text.verbosity, truncation auto,
// and what is ignored in chats.
//
// # Completions
//
// [DecodeCompletion] reads what chats have of sampling, limits, streams and
// accounting, and besides:
//
//	prompt                    a text, up to 128 texts, or either as the numbers of cl100k_base; never
//	                          empty; each goes through the model's template by itself
//	suffix                    on models whose template has a place for it
//	n                         choices for each prompt, in the prompts' order
//	echo                      the prompt before its answer
//	logprobs                  of the answer's tokens, not the prompt's
//	max_tokens                unset, the task's default as for chats, not OpenAI's 16
//	best_of                   0, 1 or n; more have no effect
//
// Without effect are logit_bias, num_ctx, keep_alive, options, think and
// format. A model that thinks is told not to.
//
// # Embeddings
//
// [DecodeEmbeddings] reads model, input, encoding_format, dimensions and user;
// truncate, num_ctx, keep_alive and options, which are Ollama's, have no
// effect. Input is a text, up to 2048 texts, or either as the numbers of
// cl100k_base, which are decoded here: the models served have vocabularies of
// their own. Fewer dimensions than the model's vectors have are the first ones,
// scaled to length 1; more are refused. A model without the capability to embed
// is refused, though its server would make up something.
//
// # Tools
//
// Ollama knows no tool_choice and refuses tools where the model's template has
// no place for them. Tools go to it as they are only for tool_choice auto on a
// model that takes them. Else the model reads of them in a system message, and
// a grammar binds its answer: to the arguments of the one tool that must be
// called, to a call of one of several, or, for auto, to a call or an answer,
// whose text still streams as it comes. Such a turn makes one call at most. The
// arguments of a tool with strict are checked, except where the server finds
// the calls itself.
//
// # Schemas
//
// A schema is validated when it is read and sent as llama.cpp's converter to
// grammars needs it: titles and such are left out, what it cannot express is
// allowed, and what would bring it down never reaches it (see grammar.go). Its
// members keep their order, in which the model will write them. The check of
// the answer is against the schema as the client sent it.
//
// # Refused
//
// Only what would change the meaning, with 400 and the field's name: a wrong
// type or range, n over the limit, image URLs that are not data URLs, audio and
// file parts, images for a model without vision, custom tools, an invalid
// schema. Besides that, bodies that two JSON readers could read differently:
// a key given twice or in another case, bad UTF-8, trailing data, deep nesting.
package wire
