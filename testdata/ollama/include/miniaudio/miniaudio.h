/* Stands in for miniaudio when Ollama's server is built for tests.
 *
 * Ollama's Go module leaves out the vendored miniaudio, which one of its C++
 * files uses to decode audio input. No test sends audio, so this header
 * declares just the names that file uses, and every call reports failure: a
 * server built with it refuses audio instead of misreading it.
 */
#ifndef MINIAUDIO_H
#define MINIAUDIO_H

typedef unsigned long long ma_uint64;
typedef int ma_result;

enum { MA_SUCCESS = 0, MA_NOT_IMPLEMENTED = -29 };
typedef enum { ma_format_f32 = 5 } ma_format;
typedef enum { ma_encoding_format_wav = 1 } ma_encoding_format;

typedef struct { int unused; } ma_decoder_config;
typedef struct { int unused; } ma_decoder;
typedef struct { int unused; } ma_encoder_config;
typedef struct { int unused; } ma_encoder;

static inline ma_decoder_config ma_decoder_config_init(ma_format, unsigned, unsigned) { return ma_decoder_config(); }
static inline ma_result ma_decoder_init_memory(const void *, unsigned long, const ma_decoder_config *, ma_decoder *) { return MA_NOT_IMPLEMENTED; }
static inline ma_result ma_decoder_get_length_in_pcm_frames(ma_decoder *, ma_uint64 *frames) { *frames = 0; return MA_NOT_IMPLEMENTED; }
static inline ma_result ma_decoder_read_pcm_frames(ma_decoder *, void *, ma_uint64, ma_uint64 *read) { *read = 0; return MA_NOT_IMPLEMENTED; }
static inline ma_result ma_decoder_uninit(ma_decoder *) { return MA_SUCCESS; }

static inline ma_encoder_config ma_encoder_config_init(ma_encoding_format, ma_format, unsigned, unsigned) { return ma_encoder_config(); }
static inline ma_result ma_encoder_init_file(const char *, const ma_encoder_config *, ma_encoder *) { return MA_NOT_IMPLEMENTED; }
static inline ma_result ma_encoder_write_pcm_frames(ma_encoder *, const void *, ma_uint64, ma_uint64 *) { return MA_NOT_IMPLEMENTED; }
static inline void ma_encoder_uninit(ma_encoder *) {}

#endif
