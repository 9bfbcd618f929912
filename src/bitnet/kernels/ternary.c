/* Products of int8 rows with ternary matrices that are packed at two bits a weight.
 *
 * Layout. A matrix W (out, in) with weights in {-1, 0, +1} is cut into tiles of 16 output rows x 16 inputs, 64 bytes each.
 * The tiles of the same 16 rows follow each other; `out` and `in` are padded to multiples of 16 with weights of zero.
 * Inside a tile, 32-bit lane r belongs to row r, byte b of the lane to inputs b, 4 + b, 8 + b and 12 + b, and
 * bits 2p and 2p + 1 of the byte ("plane" p) to input 4p + b:
 *
 *     byte 4r + b of a tile = sum over p of (W[row r][input 4p + b] + 1) << 2p
 *
 * So `(tile >> 2p) & 3` is a vector of 16 lanes of four unsigned codes, which is what the dot product instructions take:
 * vpdpbusd on x86 (unsigned codes times signed inputs) and sdot on Arm. Codes are weights plus one, hence
 *
 *     sum_i W[o][i] x[i] = sum_i code[o][i] x[i] - sum_i x[i]
 *
 * and the last sum is taken once per input row. All sums are exact in int32 up to TERNARY_MAX_IN inputs, so that every
 * instruction set gives the same integers. Float parts are plain C, compiled once per instruction set, with contraction
 * (fused multiply-add) off and reductions in a fixed order: they give the same bits everywhere, too.
 *
 * Callers check sizes; nothing here can. See arrays.py, which is the only caller.
 *
 * Sections: input blocks, scalar, AVX2, AVX-VNNI, AVX-512 VNNI, NEON, float parts, threads, paths, exported functions.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the packed layout is written for little-endian machines"
#endif

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#define SIDE 16               /* rows and inputs of a tile */
#define TILE 64               /* bytes of a tile */
#define PAIR (2 * SIDE)       /* rows of one kernel call: two tiles above each other */
#define WIDEST 8              /* input rows of the widest kernel */
#define TERNARY_MAX_IN (1 << 19) /* see avx512_vector: 2^17 inputs of a plane times 64 * 2 * -128 is -2^31 */

enum { OK = 0, INVALID_CODE = 1, NO_MEMORY = 2, NO_PATH = 3 };
enum { SCALAR, AVX2, AVX_VNNI, AVX512_VNNI, NEON, PATHS };

static int64_t blocks_of(int64_t length, int64_t size) { return (length + size - 1) / size; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* A kernel multiplies two row tiles with a block of input rows. `tiles`: the first tile of the upper rows; `below`: bytes from
 * there to the first tile of the lower rows (0: there are none, and whatever the kernel computes for them is not used);
 * `x`: an input block; `sums`: [input row][PAIR] sums of code times input, written. */
typedef void (*kernel_fn)(const uint8_t *tiles, int64_t below, int64_t k_tiles, const int8_t *x, int32_t *sums);

/* ---------------------------------------------------------------------------------------------- input blocks
 *
 * A block of 1, 2, 4 or 8 input rows is interleaved by groups of four inputs, so that a kernel reads it from
 * one address onwards:  block[group][row][4]. Inputs beyond `in` are zero: they meet the padding of the last tile. */
static void interleave(const int8_t *x, int64_t in, int width, int64_t groups, int8_t *block)
{
    int64_t whole = in / 4;
    for (int64_t g = 0; g < whole; g++)
        for (int n = 0; n < width; n++)
            memcpy(block + (g * width + n) * 4, x + n * in + 4 * g, 4);

    if (groups > whole)
        memset(block + whole * width * 4, 0, (size_t)((groups - whole) * width * 4));
    for (int64_t i = 4 * whole; i < in; i++)
        for (int n = 0; n < width; n++)
            block[(whole * width + n) * 4 + i % 4] = x[n * in + i];
}

/* ---------------------------------------------------------------------------------------------- scalar */
INLINE void scalar_body(const uint8_t *tiles, int64_t below, int64_t k_tiles, const int8_t *x, int32_t *sums, const int width)
{
    memset(sums, 0, sizeof(int32_t) * (size_t)(width * PAIR));
    for (int half = 0; half < (below ? 2 : 1); half++)
        for (int64_t k = 0; k < k_tiles; k++) {
            uint32_t lanes[SIDE];
            memcpy(lanes, tiles + half * below + k * TILE, TILE);
            const int8_t *inputs = x + k * SIDE * width;
            for (int n = 0; n < width; n++) {
                int32_t *sum = sums + n * PAIR + half * SIDE;
                for (int i = 0; i < SIDE; i++) { /* input i is byte i % 4, plane i / 4 */
                    const int shift = i % 4 * 8 + i / 4 * 2, input = inputs[(i / 4 * width + n) * 4 + i % 4];
                    for (int r = 0; r < SIDE; r++) sum[r] += (int32_t)(lanes[r] >> shift & 3) * input;
                }
            }
        }
}

static void scalar_1(const uint8_t *t, int64_t b, int64_t k, const int8_t *x, int32_t *s) { scalar_body(t, b, k, x, s, 1); }
static void scalar_2(const uint8_t *t, int64_t b, int64_t k, const int8_t *x, int32_t *s) { scalar_body(t, b, k, x, s, 2); }
static void scalar_4(const uint8_t *t, int64_t b, int64_t k, const int8_t *x, int32_t *s) { scalar_body(t, b, k, x, s, 4); }

INLINE int32_t four_inputs(const int8_t *x)
{
    int32_t word;
    memcpy(&word, x, 4);
    return word;
}

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

/* ---------------------------------------------------------------------------------------------- AVX2
 *
 * vpmaddubsw adds two products into 16 bits: at most 2 * 2 * 128 = 512 in magnitude. Sixty of those sums still fit (30,720),
 * so 15 tiles of four planes are added in 16 bits before vpmaddwd folds them into 32. A 17th tile would wrap around. */
#define TARGET_AVX2 __attribute__((target("avx2,fma")))
#define FOLD_EVERY 15
/* Without this gcc adds the planes of a tile in a tree, whose leaves do not fit the registers: 250 instead of 340 Gop/s. */
#define KEEP_ORDER(A, B) __asm__("" : "+x"(A), "+x"(B))

TARGET_AVX2 INLINE void avx2_tiles(const uint8_t *tile, int64_t count, const int8_t *x, int32_t *sums, const int width)
{
    const __m256i three = _mm256_set1_epi8(3);
    __m256i low[4], high[4];
    UNROLL for (int n = 0; n < width; n++) low[n] = high[n] = _mm256_setzero_si256();

    for (int64_t k = 0; k < count; k++, tile += TILE) {
        __m256i u = _mm256_loadu_si256((const __m256i *)tile), v = _mm256_loadu_si256((const __m256i *)(tile + 32));
        UNROLL for (int p = 0; p < 4; p++, x += 4 * width) {
            __m256i upper = _mm256_and_si256(u, three), lower = _mm256_and_si256(v, three);
            u = _mm256_srli_epi32(u, 2), v = _mm256_srli_epi32(v, 2);
            UNROLL for (int n = 0; n < width; n++) {
                __m256i inputs = _mm256_set1_epi32(four_inputs(x + 4 * n));
                low[n] = _mm256_add_epi16(low[n], _mm256_maddubs_epi16(upper, inputs));
                high[n] = _mm256_add_epi16(high[n], _mm256_maddubs_epi16(lower, inputs));
                KEEP_ORDER(low[n], high[n]);
            }
        }
    }

    const __m256i ones = _mm256_set1_epi16(1);
    UNROLL for (int n = 0; n < width; n++) {
        __m256i *sum = (__m256i *)(sums + n * PAIR);
        _mm256_storeu_si256(sum, _mm256_add_epi32(_mm256_loadu_si256(sum), _mm256_madd_epi16(low[n], ones)));
        _mm256_storeu_si256(sum + 1, _mm256_add_epi32(_mm256_loadu_si256(sum + 1), _mm256_madd_epi16(high[n], ones)));
    }
}

TARGET_AVX2 INLINE void avx2_body(const uint8_t *tiles, int64_t below, int64_t k_tiles, const int8_t *x, int32_t *sums, const int width)
{
    memset(sums, 0, sizeof(int32_t) * (size_t)(width * PAIR));
    for (int half = 0; half < (below ? 2 : 1); half++)
        for (int64_t k = 0; k < k_tiles; k += FOLD_EVERY)
            avx2_tiles(tiles + half * below + k * TILE, smaller(FOLD_EVERY, k_tiles - k), x + k * SIDE * width, sums + half * SIDE, width);
}

TARGET_AVX2 static void avx2_1(const uint8_t *t, int64_t b, int64_t k, const int8_t *x, int32_t *s) { avx2_body(t, b, k, x, s, 1); }
TARGET_AVX2 static void avx2_2(const uint8_t *t, int64_t b, int64_t k, const int8_t *x, int32_t *s) { avx2_body(t, b, k, x, s, 2); }
TARGET_AVX2 static void avx2_4(const uint8_t *t, int64_t b, int64_t k, const int8_t *x, int32_t *s) { avx2_body(t, b, k, x, s, 4); }

/* ---------------------------------------------------------------------------------------------- AVX-VNNI
 *
 * vpdpbusd in 256 bits, for CPUs without AVX-512. TERNARY_AVX_VNNI_BY_AVX512 makes the same code with the AVX-512 encoding of
 * the instruction, so that the tests can run it on CPUs that have only that one. */
#if defined(TERNARY_AVX_VNNI_BY_AVX512)
#define HAVE_AVX_VNNI 1
#define TARGET_AVX_VNNI __attribute__((target("avx2,fma,avx512f,avx512vl,avx512vnni")))
#define DOT256 _mm256_dpbusd_epi32
#elif (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11)
#define HAVE_AVX_VNNI 1
#define TARGET_AVX_VNNI __attribute__((target("avx2,fma,avxvnni")))
#define DOT256 _mm256_dpbusd_avx_epi32
#endif

#if defined(HAVE_AVX_VNNI)
TARGET_AVX_VNNI INLINE void avx_vnni_tile_row(const uint8_t *tile, int64_t k_tiles, const int8_t *x, int32_t *sums, const int width)
{
    const __m256i three = _mm256_set1_epi8(3);
    __m256i low[4], high[4];
    UNROLL for (int n = 0; n < width; n++) low[n] = high[n] = _mm256_setzero_si256();

    for (int64_t k = 0; k < k_tiles; k++, tile += TILE) {
        __m256i u = _mm256_loadu_si256((const __m256i *)tile), v = _mm256_loadu_si256((const __m256i *)(tile + 32));
        UNROLL for (int p = 0; p < 4; p++, x += 4 * width) {
            __m256i upper = _mm256_and_si256(u, three), lower = _mm256_and_si256(v, three);
            u = _mm256_srli_epi32(u, 2), v = _mm256_srli_epi32(v, 2);
            UNROLL for (int n = 0; n < width; n++) {
                __m256i inputs = _mm256_set1_epi32(four_inputs(x + 4 * n));
                low[n] = DOT256(low[n], upper, inputs);
                high[n] = DOT256(high[n], lower, inputs);
            }
        }
    }

    UNROLL for (int n = 0; n < width; n++) {
        _mm256_storeu_si256((__m256i *)(sums + n * PAIR), low[n]);
        _mm256_storeu_si256((__m256i *)(sums + n * PAIR) + 1, high[n]);
    }
}

/* One input row: an accumulator per plane, without shifts, as in avx512_vector below. */
TARGET_AVX_VNNI static void avx_vnni_1(const uint8_t *tiles, int64_t below, int64_t k_tiles, const int8_t *x, int32_t *sums)
{
    for (int quarter = 0; quarter < (below ? 4 : 2); quarter++) {
        const uint8_t *tile = tiles + quarter / 2 * below + quarter % 2 * 32;
        __m256i acc[4];
        UNROLL for (int p = 0; p < 4; p++) acc[p] = _mm256_setzero_si256();

        for (int64_t k = 0; k < k_tiles; k++) {
            __m256i u = _mm256_loadu_si256((const __m256i *)(tile + k * TILE));
            UNROLL for (int p = 0; p < 4; p++) {
                __m256i plane = _mm256_and_si256(u, _mm256_set1_epi8((char)(3 << 2 * p)));
                acc[p] = DOT256(acc[p], plane, _mm256_set1_epi32(four_inputs(x + k * SIDE + 4 * p)));
            }
        }

        UNROLL for (int p = 1; p < 4; p++) acc[0] = _mm256_add_epi32(acc[0], _mm256_srai_epi32(acc[p], 2 * p));
        _mm256_storeu_si256((__m256i *)(sums + quarter * 8), acc[0]);
    }
}

#define AVX_VNNI_KERNEL(WIDTH) \
    TARGET_AVX_VNNI static void avx_vnni_##WIDTH(const uint8_t *t, int64_t below, int64_t k, const int8_t *x, int32_t *s) \
    { \
        avx_vnni_tile_row(t, k, x, s, WIDTH); \
        if (below) avx_vnni_tile_row(t + below, k, x, s + SIDE, WIDTH); \
    }
AVX_VNNI_KERNEL(2)
AVX_VNNI_KERNEL(4)
#endif

/* ---------------------------------------------------------------------------------------------- AVX-512 VNNI */
#if defined(__clang__) || __GNUC__ >= 8
#define HAVE_AVX512_VNNI 1
#define TARGET_AVX512 __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))

/* Two row tiles x 4 or 8 input rows: 8 or 16 accumulators, and each decoded plane is used `width` times. */
TARGET_AVX512 INLINE void avx512_body(const uint8_t *tiles, int64_t below, int64_t k_tiles, const int8_t *x, int32_t *sums, const int width)
{
    const __m512i three = _mm512_set1_epi8(3);
    __m512i upper[WIDEST], lower[WIDEST];
    UNROLL for (int n = 0; n < width; n++) upper[n] = lower[n] = _mm512_setzero_si512();

    for (int64_t k = 0; k < k_tiles; k++, tiles += TILE) {
        __m512i u = _mm512_loadu_si512(tiles), v = _mm512_loadu_si512(tiles + below);
        UNROLL for (int p = 0; p < 4; p++, x += 4 * width) {
            __m512i c = _mm512_and_si512(u, three), d = _mm512_and_si512(v, three);
            u = _mm512_srli_epi32(u, 2), v = _mm512_srli_epi32(v, 2);
            UNROLL for (int n = 0; n < width; n++) {
                __m512i inputs = _mm512_set1_epi32(four_inputs(x + 4 * n));
                upper[n] = _mm512_dpbusd_epi32(upper[n], c, inputs);
                lower[n] = _mm512_dpbusd_epi32(lower[n], d, inputs);
            }
        }
    }

    UNROLL for (int n = 0; n < width; n++) {
        _mm512_storeu_si512(sums + n * PAIR, upper[n]);
        _mm512_storeu_si512(sums + n * PAIR + SIDE, lower[n]);
    }
}

/* One or two input rows: decoding would cost as much as multiplying. Planes are masked but not shifted: plane p then counts
 * 4^p times too much, and has an accumulator of its own, which is divided (exactly) at the end. The largest magnitude is that
 * of plane 3, 64 * 2 * 128 for each of its in / 4 inputs: TERNARY_MAX_IN is where that reaches -2^31. */
TARGET_AVX512 INLINE void avx512_vector(const uint8_t *tiles, int64_t k_tiles, const int8_t *x, int32_t *sums, const int width)
{
    __m512i acc[2][4];
    UNROLL for (int p = 0; p < 4; p++) acc[0][p] = acc[1][p] = _mm512_setzero_si512();

    for (int64_t k = 0; k < k_tiles; k++, tiles += TILE) {
        __m512i u = _mm512_loadu_si512(tiles);
        UNROLL for (int p = 0; p < 4; p++, x += 4 * width) {
            __m512i plane = _mm512_and_si512(u, _mm512_set1_epi8((char)(3 << 2 * p)));
            UNROLL for (int n = 0; n < width; n++)
                acc[n][p] = _mm512_dpbusd_epi32(acc[n][p], plane, _mm512_set1_epi32(four_inputs(x + 4 * n)));
        }
    }

    UNROLL for (int n = 0; n < width; n++) {
        UNROLL for (int p = 1; p < 4; p++) acc[n][0] = _mm512_add_epi32(acc[n][0], _mm512_srai_epi32(acc[n][p], 2 * p));
        _mm512_storeu_si512(sums + n * PAIR, acc[n][0]);
    }
}

#define AVX512_VECTOR(WIDTH) \
    TARGET_AVX512 static void avx512_##WIDTH(const uint8_t *t, int64_t below, int64_t k, const int8_t *x, int32_t *s) \
    { \
        avx512_vector(t, k, x, s, WIDTH); \
        if (below) avx512_vector(t + below, k, x, s + SIDE, WIDTH); \
    }
AVX512_VECTOR(1)
AVX512_VECTOR(2)
TARGET_AVX512 static void avx512_4(const uint8_t *t, int64_t b, int64_t k, const int8_t *x, int32_t *s) { avx512_body(t, b, k, x, s, 4); }
TARGET_AVX512 static void avx512_8(const uint8_t *t, int64_t b, int64_t k, const int8_t *x, int32_t *s) { avx512_body(t, b, k, x, s, 8); }
#endif
#endif /* x86 */

/* ---------------------------------------------------------------------------------------------- NEON dotprod */
#if defined(__aarch64__)
#include <arm_neon.h>
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#if defined(__clang__)
#define TARGET_NEON __attribute__((target("dotprod")))
#else
#define TARGET_NEON __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

/* A tile is four registers of four rows. Four input rows: lane n of a group is input row n. */
TARGET_NEON static void neon_tile_row_4(const uint8_t *tile, int64_t k_tiles, const int8_t *x, int32_t *sums)
{
    const uint8x16_t three = vdupq_n_u8(3);
    int32x4_t acc[4][4]; /* [input row][quarter of the tile] */
    UNROLL for (int i = 0; i < 16; i++) acc[i / 4][i % 4] = vdupq_n_s32(0);

    for (int64_t k = 0; k < k_tiles; k++, tile += TILE) {
        uint8x16_t u[4];
        UNROLL for (int q = 0; q < 4; q++) u[q] = vld1q_u8(tile + 16 * q);
        UNROLL for (int p = 0; p < 4; p++, x += 16) {
            int8x16_t inputs = vld1q_s8(x);
            UNROLL for (int q = 0; q < 4; q++) {
                int8x16_t codes = vreinterpretq_s8_u8(vandq_u8(u[q], three));
                u[q] = vshrq_n_u8(u[q], 2);
                acc[0][q] = vdotq_laneq_s32(acc[0][q], codes, inputs, 0);
                acc[1][q] = vdotq_laneq_s32(acc[1][q], codes, inputs, 1);
                acc[2][q] = vdotq_laneq_s32(acc[2][q], codes, inputs, 2);
                acc[3][q] = vdotq_laneq_s32(acc[3][q], codes, inputs, 3);
            }
        }
    }

    UNROLL for (int i = 0; i < 16; i++) vst1q_s32(sums + i / 4 * PAIR + i % 4 * 4, acc[i / 4][i % 4]);
}

/* One input row: lane p of its sixteen inputs meets plane p; two accumulators, because one chain would wait for itself. */
TARGET_NEON static void neon_tile_row_1(const uint8_t *tile, int64_t k_tiles, const int8_t *x, int32_t *sums)
{
    const uint8x16_t three = vdupq_n_u8(3);
    int32x4_t even[4], odd[4];
    UNROLL for (int q = 0; q < 4; q++) even[q] = odd[q] = vdupq_n_s32(0);

    for (int64_t k = 0; k < k_tiles; k++, tile += TILE, x += SIDE) {
        int8x16_t inputs = vld1q_s8(x);
        UNROLL for (int q = 0; q < 4; q++) {
            uint8x16_t u = vld1q_u8(tile + 16 * q);
            even[q] = vdotq_laneq_s32(even[q], vreinterpretq_s8_u8(vandq_u8(u, three)), inputs, 0);
            odd[q] = vdotq_laneq_s32(odd[q], vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(u, 2), three)), inputs, 1);
            even[q] = vdotq_laneq_s32(even[q], vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(u, 4), three)), inputs, 2);
            odd[q] = vdotq_laneq_s32(odd[q], vreinterpretq_s8_u8(vshrq_n_u8(u, 6)), inputs, 3);
        }
    }

    UNROLL for (int q = 0; q < 4; q++) vst1q_s32(sums + 4 * q, vaddq_s32(even[q], odd[q]));
}

#define NEON_KERNEL(WIDTH) \
    static void neon_##WIDTH(const uint8_t *t, int64_t below, int64_t k, const int8_t *x, int32_t *s) \
    { \
        neon_tile_row_##WIDTH(t, k, x, s); \
        if (below) neon_tile_row_##WIDTH(t + below, k, x, s + SIDE); \
    }
NEON_KERNEL(1)
NEON_KERNEL(4)
#endif /* aarch64 */

/* ---------------------------------------------------------------------------------------------- float parts
 *
 * Plain C that the compiler vectorises, once per instruction set. The rules are those of bitnet.nn.quantize and
 * bitnet.nn.rms_norm: magnitudes below EPSILON count as EPSILON, codes are rounded half to even. */
#define EPSILON 1e-5f
#define ROUNDING 12582912.0f /* 1.5 * 2^23: adding it rounds a float of small magnitude to an integer, half to even */

struct rows { /* rows to quantise */
    const void *x;        /* (n, in) float32, or bfloat16 */
    int bf16;
    int64_t n, in;
    const float *columns; /* (in) factors, or NULL: of the norm, or of the columns */
    float *inverse;       /* (n) 1 / rms of each row, written; NULL: no norm */
    float eps;
    int8_t *codes;        /* (n, in) written */
    float *step;          /* (n) written */
};

struct product { /* y[n][o] = (sum over i of W[o][i] x[n][i]) * scale[o] * step[n] */
    const struct path *path;
    const uint8_t *packed;
    int64_t out, in;
    const int8_t *x;      /* (n, in) */
    int64_t n;
    int32_t *sums;        /* (n, out) the bare integers, written; or NULL */
    float *y;             /* (n, out) written where sums is NULL */
    const float *step;    /* (n) */
    const float *scale;   /* (out), or NULL: 1 */
    int64_t chunk, parts; /* how it is cut into items, see multiply */
};

INLINE int32_t bits_of(float value)
{
    int32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

INLINE float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* The nearest bfloat16, half to even, as torch rounds. A NaN stays one. */
INLINE float rounded_to_bf16(float value)
{
    uint32_t bits = (uint32_t)bits_of(value);
    uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000u;
    return float_of((bits & 0x7FFFFFFF) > 0x7F800000 ? bits : rounded);
}

/* 1 / sqrt(mean(x^2) + eps). Sixteen partial sums in a fixed order: any vector width adds them alike. */
INLINE float inverse_rms(const float *x, int64_t in, float eps)
{
    float part[16] = {0};
    int64_t i = 0;
    for (; i + 16 <= in; i += 16)
        for (int lane = 0; lane < 16; lane++) part[lane] += x[i + lane] * x[i + lane];
    for (; i < in; i++) part[i % 16] += x[i] * x[i];

    for (int half = 8; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) part[lane] += part[lane + half];
    return 1.0f / sqrtf(part[0] / (float)in + eps);
}

/* The values of one row that are to be quantised, in float32: x itself, or computed into work. */
INLINE const float *row_values(const struct rows *job, int64_t row, float *work)
{
    const int64_t in = job->in;
    const float *values = (const float *)job->x + row * in;
    if (job->bf16) {
        const uint16_t *narrow = (const uint16_t *)job->x + row * in;
        for (int64_t i = 0; i < in; i++) work[i] = float_of((uint32_t)narrow[i] << 16);
        values = work;
    }

    if (job->inverse) {
        float inverse = job->inverse[row] = inverse_rms(values, in, job->eps);
        for (int64_t i = 0; i < in; i++) work[i] = values[i] * inverse * job->columns[i];
        if (job->bf16) /* the norm keeps the dtype of its input */
            for (int64_t i = 0; i < in; i++) work[i] = rounded_to_bf16(work[i]);
        return work;
    }
    if (!job->columns) return values;
    for (int64_t i = 0; i < in; i++) work[i] = values[i] * job->columns[i];
    return work;
}

INLINE void quantize_row(const struct rows *job, int64_t row, float *work)
{
    const float *values = row_values(job, row, work);
    int8_t *codes = job->codes + row * job->in;

    /* Without its sign a float orders as an integer, with infinity and then NaN above every number: one of those in the row
     * becomes its step, and so spoils the row's output visibly. */
    int32_t top = 0;
    for (int64_t i = 0; i < job->in; i++) {
        int32_t magnitude = bits_of(values[i]) & 0x7FFFFFFF;
        top = magnitude > top ? magnitude : top;
    }
    float largest = float_of((uint32_t)top);
    if (largest < EPSILON) largest = EPSILON;
    job->step[row] = largest / 127.0f;
    if (top >= 0x7F800000) {
        memset(codes, 0, (size_t)job->in);
        return;
    }

    /* As torch computes 127 / largest, by the reciprocal. |value * inverse| is below 127.5, so nothing needs clipping. */
    const float inverse = 1.0f / largest * 127.0f;
    for (int64_t i = 0; i < job->in; i++) codes[i] = (int8_t)(bits_of(values[i] * inverse + ROUNDING) - 0x4B400000);
}

/* In 16 bits first, twice as many at a time: 128 inputs of magnitude 128 stay below 2^15. */
INLINE int32_t sum_of_inputs(const int8_t *x, int64_t in)
{
    int32_t sum = 0;
    int64_t i = 0;
    while (i + 32 <= in) {
        int16_t part[32] = {0};
        const int64_t stop = smaller(in - 31, i + 128 * 32);
        for (; i < stop; i += 32)
            for (int lane = 0; lane < 32; lane++) part[lane] += x[i + lane];
        for (int lane = 0; lane < 32; lane++) sum += part[lane];
    }
    for (; i < in; i++) sum += x[i];
    return sum;
}

/* From sums of code times input to the output of `count` rows of W, from `first` on, for input row n. */
INLINE void finish_rows(const struct product *job, const int32_t *sums, int64_t n, int64_t first, int64_t count, int32_t input_sum)
{
    const int64_t at = n * job->out + first;
    if (job->sums) {
        for (int64_t r = 0; r < count; r++) job->sums[at + r] = sums[r] - input_sum;
        return;
    }

    const float step = job->step[n];
    float *y = job->y + at;
    if (!job->scale)
        for (int64_t r = 0; r < count; r++) y[r] = (float)(sums[r] - input_sum) * step;
    else
        for (int64_t r = 0; r < count; r++) y[r] = (float)(sums[r] - input_sum) * job->scale[first + r] * step;
}

typedef void (*quantize_fn)(const struct rows *job, int64_t row, float *work);
typedef int32_t (*sum_fn)(const int8_t *x, int64_t in);
typedef void (*finish_fn)(const struct product *job, const int32_t *sums, int64_t n, int64_t first, int64_t count, int32_t input_sum);

#define FLOAT_PARTS(NAME, TARGET) \
    TARGET static void quantize_##NAME(const struct rows *job, int64_t row, float *work) { quantize_row(job, row, work); } \
    TARGET static int32_t sum_##NAME(const int8_t *x, int64_t in) { return sum_of_inputs(x, in); } \
    TARGET static void finish_##NAME(const struct product *job, const int32_t *s, int64_t n, int64_t first, int64_t count, int32_t sum) \
    { \
        finish_rows(job, s, n, first, count, sum); \
    }
FLOAT_PARTS(plain, )
#if defined(__x86_64__)
FLOAT_PARTS(avx2, TARGET_AVX2)
#endif
#if defined(HAVE_AVX512_VNNI)
FLOAT_PARTS(avx512, TARGET_AVX512)
#endif

/* ---------------------------------------------------------------------------------------------- paths */
struct path {
    kernel_fn kernel[4]; /* for 1, 2, 4, 8 input rows; NULL where a path has none */
    quantize_fn quantize;
    sum_fn sum;
    finish_fn finish;
};

static const struct path paths[PATHS] = {
    [SCALAR] = {{scalar_1, scalar_2, scalar_4, NULL}, quantize_plain, sum_plain, finish_plain},
#if defined(__x86_64__)
    [AVX2] = {{avx2_1, avx2_2, avx2_4, NULL}, quantize_avx2, sum_avx2, finish_avx2},
#endif
#if defined(HAVE_AVX_VNNI)
    [AVX_VNNI] = {{avx_vnni_1, avx_vnni_2, avx_vnni_4, NULL}, quantize_avx2, sum_avx2, finish_avx2},
#endif
#if defined(HAVE_AVX512_VNNI)
    [AVX512_VNNI] = {{avx512_1, avx512_2, avx512_4, avx512_8}, quantize_avx512, sum_avx512, finish_avx512},
#endif
#if defined(__aarch64__)
    [NEON] = {{neon_1, NULL, neon_4, NULL}, quantize_plain, sum_plain, finish_plain},
#endif
};

#if defined(HAVE_AVX_VNNI)
static int cpu_has_avx_vnni(void)
{
#if defined(TERNARY_AVX_VNNI_BY_AVX512)
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
    unsigned a, b, c, d; /* leaf 7, subleaf 1, EAX bit 4; older compilers do not know it by name */
    return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
#endif
}
#endif

static unsigned look_for_paths(void)
{
    unsigned found = 1u << SCALAR;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found |= 1u << AVX2;
#endif
#if defined(HAVE_AVX_VNNI)
    if (cpu_has_avx_vnni()) found |= 1u << AVX_VNNI;
#endif
#if defined(HAVE_AVX512_VNNI)
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        found |= 1u << AVX512_VNNI;
#endif
#if defined(__aarch64__) && defined(__APPLE__)
    found |= 1u << NEON; /* every Apple processor with this instruction set has it */
#elif defined(__aarch64__) && defined(__linux__)
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) found |= 1u << NEON;
#endif
    return found;
}

/* One bit per path that this build and this CPU have. Looked for once: on a virtual machine each cpuid costs microseconds. */
EXPORT unsigned ternary_paths(void)
{
    static unsigned known; /* 0: not yet; two threads that look at once find the same */
    unsigned found = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (!found) __atomic_store_n(&known, found = look_for_paths(), __ATOMIC_RELAXED);
    return found;
}

static const struct path *usable(int path)
{
    return path >= 0 && path < PATHS && (ternary_paths() >> path & 1) ? &paths[path] : NULL;
}

/* ---------------------------------------------------------------------------------------------- threads
 *
 * A pool of our own, because OpenMP's idle threads spin beside torch's and do not survive a fork (docs/log.md has figures).
 * A job is a number of items, taken from one counter by the caller and the workers. The caller works as well, and when no item
 * is left it takes the job back from workers that have not begun: on a busy machine nobody waits for a thread to wake up.
 * An idle worker looks for a job SPINS times, some microseconds, and then sleeps.
 *
 * One job at a time. A caller that finds the pool busy does its job alone. After fork() the child starts workers of its own. */
#define MOST_WORKERS 255
#define SPINS 1000

typedef void (*work_fn)(void *job, int64_t item, void *scratch);
enum { IDLE, OFFERED, TAKEN };

struct worker {
    int state;    /* IDLE, OFFERED, TAKEN */
    int sleeping;
    void *scratch;
    pthread_mutex_t lock;
    pthread_cond_t wake;
};

static struct {
    pthread_mutex_t busy; /* held during a job */
    int started;
    struct worker worker[MOST_WORKERS];
    work_fn work;
    void *job;
    int64_t items, next;
    void *scratch;
    size_t scratch_size;
    int watches_fork;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER};

INLINE void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int read_state(const int *state) { return __atomic_load_n(state, __ATOMIC_SEQ_CST); }
static void write_state(int *state, int value) { __atomic_store_n(state, value, __ATOMIC_SEQ_CST); }
static int swap_state(int *state, int from, int to)
{
    return __atomic_compare_exchange_n(state, &from, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static void take_items(void *scratch)
{
    int64_t item;
    while ((item = __atomic_fetch_add(&pool.next, 1, __ATOMIC_RELAXED)) < pool.items) pool.work(pool.job, item, scratch);
}

static void wait_for_offer(struct worker *me)
{
    for (int spin = 0; spin < SPINS; spin++) {
        if (read_state(&me->state) == OFFERED) return;
        pause_briefly();
    }
    pthread_mutex_lock(&me->lock);
    write_state(&me->sleeping, 1); /* set before the last look: offer() stores the state before it reads this */
    while (read_state(&me->state) != OFFERED) pthread_cond_wait(&me->wake, &me->lock);
    write_state(&me->sleeping, 0);
    pthread_mutex_unlock(&me->lock);
}

static void *worker_main(void *argument)
{
    struct worker *me = argument;
    for (;;) {
        wait_for_offer(me);
        if (!swap_state(&me->state, OFFERED, TAKEN)) continue; /* taken back */
        take_items(me->scratch);
        write_state(&me->state, IDLE);
    }
    return NULL;
}

static void offer(struct worker *worker, void *scratch)
{
    worker->scratch = scratch;
    write_state(&worker->state, OFFERED);
    if (read_state(&worker->sleeping)) {
        pthread_mutex_lock(&worker->lock);
        pthread_cond_signal(&worker->wake);
        pthread_mutex_unlock(&worker->lock);
    }
}

static void take_back_or_wait(struct worker *worker)
{
    if (swap_state(&worker->state, OFFERED, IDLE)) return;
    for (int spin = 0; read_state(&worker->state) != IDLE; spin++)
        if (spin < SPINS) pause_briefly();
        else sched_yield();
}

static void before_fork(void) { pthread_mutex_lock(&pool.busy); }
static void after_fork_in_parent(void) { pthread_mutex_unlock(&pool.busy); }
static void after_fork_in_child(void)
{
    pool.started = 0; /* threads do not survive a fork */
    pthread_mutex_init(&pool.busy, NULL);
}

/* Start workers until there are `wanted`, or as many as the system allows. They take no signals: those are for Python's thread. */
static void start_workers(int wanted)
{
    if (!pool.watches_fork)
        pool.watches_fork = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) == 0;
    if (!pool.watches_fork) return;

    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.started < wanted && pool.started < MOST_WORKERS) {
        struct worker *worker = &pool.worker[pool.started];
        pthread_t thread;
        worker->state = IDLE, worker->sleeping = 0;
        pthread_mutex_init(&worker->lock, NULL);
        pthread_cond_init(&worker->wake, NULL);
        if (pthread_create(&thread, NULL, worker_main, worker) != 0) break;
        pthread_detach(thread);
        pool.started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Do every item of a job on up to `threads` threads. `need`: bytes of scratch memory for each of them. */
static int run(work_fn work, void *job, int64_t items, int threads, size_t need)
{
    need = (need + 63) / 64 * 64;
    if (pthread_mutex_trylock(&pool.busy) != 0) {
        void *own = malloc(need + 1);
        if (!own) return NO_MEMORY;
        for (int64_t item = 0; item < items; item++) work(job, item, own);
        free(own);
        return OK;
    }

    if (threads > items) threads = (int)items;
    if (threads > 1) start_workers(threads - 1);
    if (threads > pool.started + 1) threads = pool.started + 1;
    if (threads < 1) threads = 1;
    if (pool.scratch_size < need * (size_t)threads) {
        free(pool.scratch);
        pool.scratch_size = need * (size_t)threads;
        if (posix_memalign(&pool.scratch, 64, pool.scratch_size) != 0) {
            pool.scratch = NULL, pool.scratch_size = 0;
            pthread_mutex_unlock(&pool.busy);
            return NO_MEMORY;
        }
    }

    pool.work = work, pool.job = job, pool.items = items, pool.next = 0;
    for (int i = 0; i < threads - 1; i++) offer(&pool.worker[i], (char *)pool.scratch + need * (size_t)(i + 1));
    take_items(pool.scratch);
    for (int i = 0; i < threads - 1; i++) take_back_or_wait(&pool.worker[i]);
    pthread_mutex_unlock(&pool.busy);
    return OK;
}

/* ---------------------------------------------------------------------------------------------- packing */
struct packing {
    const int8_t *codes;
    int64_t out, in;      /* of the packed matrix */
    int transposed;       /* codes are (in, out) instead of (out, in) */
    uint8_t *packed;
    int invalid;          /* some code was not -1, 0 or 1 */
};

/* The 16 x 16 weights of a tile, zero beyond the matrix. */
static void gather(const struct packing *job, int64_t row, int64_t input, int8_t weights[SIDE][SIDE])
{
    int64_t rows = smaller(SIDE, job->out - row), inputs = smaller(SIDE, job->in - input);
    if (rows < SIDE || inputs < SIDE) memset(weights, 0, SIDE * SIDE);

    if (!job->transposed)
        for (int64_t r = 0; r < rows; r++) memcpy(weights[r], job->codes + (row + r) * job->in + input, (size_t)inputs);
    else
        for (int64_t i = 0; i < inputs; i++)
            for (int64_t r = 0; r < rows; r++) weights[r][i] = job->codes[(input + i) * job->out + row + r];
}

/* Pack one tile. Returns whether a weight was none: four bytes at a time, each plus one without a carry into the next. */
static int pack_tile(int8_t weights[SIDE][SIDE], uint8_t *tile)
{
    uint32_t invalid = 0;
    for (int r = 0; r < SIDE; r++) {
        uint32_t lane = 0;
        for (int p = 0; p < 4; p++) {
            uint32_t word = (uint32_t)four_inputs(weights[r] + 4 * p);
            word = ((word & 0x7F7F7F7Fu) + 0x01010101u) ^ (word & 0x80808080u);
            invalid |= (word & 0xFCFCFCFCu) | (word & word >> 1 & 0x01010101u);
            lane |= word << 2 * p;
        }
        memcpy(tile + 4 * r, &lane, 4);
    }
    return invalid != 0;
}

static void pack_row_of_tiles(void *argument, int64_t item, void *scratch)
{
    struct packing *job = argument;
    int64_t k_tiles = blocks_of(job->in, SIDE);
    int invalid = 0;
    (void)scratch;

    for (int64_t k = 0; k < k_tiles; k++) {
        int8_t weights[SIDE][SIDE];
        gather(job, item * SIDE, k * SIDE, weights);
        invalid |= pack_tile(weights, job->packed + (item * k_tiles + k) * TILE);
    }
    if (invalid) __atomic_store_n(&job->invalid, 1, __ATOMIC_RELAXED);
}

/* codes: (out, in), or (in, out) if transposed, in {-1, 0, 1}. packed: ceil(out / 16) * ceil(in / 16) * 64 bytes. */
EXPORT int ternary_pack(const int8_t *codes, int64_t out, int64_t in, int transposed, uint8_t *packed, int threads)
{
    struct packing job = {codes, out, in, transposed, packed, 0};
    int status = run(pack_row_of_tiles, &job, blocks_of(out, SIDE), threads, 0);
    return status != OK ? status : job.invalid ? INVALID_CODE : OK;
}

/* The reverse: codes (out, in). A pair of bits that no weight has (3) is INVALID_CODE. */
EXPORT int ternary_unpack(const uint8_t *packed, int64_t out, int64_t in, int8_t *codes)
{
    int64_t k_tiles = blocks_of(in, SIDE);
    int invalid = 0;
    for (int64_t o = 0; o < out; o++)
        for (int64_t i = 0; i < in; i++) {
            const uint8_t *tile = packed + (o / SIDE * k_tiles + i / SIDE) * TILE;
            int code = tile[o % SIDE * 4 + i % 4] >> (i % SIDE / 4 * 2) & 3;
            invalid |= code == 3;
            codes[o * in + i] = (int8_t)(code - 1);
        }
    return invalid ? INVALID_CODE : OK;
}

/* ---------------------------------------------------------------------------------------------- quantising rows */
#define ROWS_OF_AN_ITEM 8

struct quantizing {
    const struct path *path;
    struct rows rows;
};

static void quantize_some(void *argument, int64_t item, void *scratch)
{
    struct quantizing *job = argument;
    int64_t end = smaller((item + 1) * ROWS_OF_AN_ITEM, job->rows.n);
    for (int64_t row = item * ROWS_OF_AN_ITEM; row < end; row++) job->path->quantize(&job->rows, row, scratch);
}

/* x: (n, in) float32 or bfloat16. columns: (in) factors of x or, with `inverse`, the weight of an RMSNorm before; or NULL.
 * Written: codes (n, in), step (n), and inverse (n) where it is not NULL. */
EXPORT int ternary_quantize(int path, const void *x, int bf16, int64_t n, int64_t in, const float *columns, float eps, int8_t *codes,
                            float *step, float *inverse, int threads)
{
    struct quantizing job = {usable(path), {x, bf16, n, in, columns, inverse, eps, codes, step}};
    if (!job.path) return NO_PATH;
    if (n * in < (1 << 15)) threads = 1; /* a few microseconds: shorter than waking a thread */
    return run(quantize_some, &job, blocks_of(n, ROWS_OF_AN_ITEM), threads, (size_t)in * sizeof(float));
}

/* ---------------------------------------------------------------------------------------------- products */
#define LARGEST_CHUNK 64          /* input rows that one item interleaves */
#define CACHED_BYTES (1 << 18)    /* of a chunk, and of the weights that are multiplied with it in turn: they share an L2 cache */
#define ITEMS_PER_THREAD 4        /* so that a thread that was interrupted does not hold up the others */
#define MACS_PER_THREAD (1 << 20) /* a few microseconds of work */

/* log2 of the widest kernel for up to `rows` input rows */
static int width_for(const struct path *path, int64_t rows)
{
    int width = 3;
    while (width > 0 && (!path->kernel[width] || 1 << width > rows)) width--;
    return width;
}

/* One block of 2^width input rows times some pairs of row tiles. */
static void multiply_block(const struct product *job, int width, const int8_t *block, int64_t n, const int32_t *input_sums,
                           int64_t begin, int64_t end)
{
    const int64_t k_tiles = blocks_of(job->in, SIDE), row_tiles = blocks_of(job->out, SIDE);
    int32_t sums[WIDEST * PAIR];
    for (int64_t pair = begin; pair < end; pair++) {
        const uint8_t *tiles = job->packed + pair * 2 * k_tiles * TILE;
        const int64_t below = 2 * pair + 1 < row_tiles ? k_tiles * TILE : 0;
        const int64_t out_rows = smaller(PAIR, job->out - pair * PAIR);

        job->path->kernel[width](tiles, below, k_tiles, block, sums);
        for (int i = 0; i < 1 << width; i++)
            job->path->finish(job, sums + i * PAIR, n + i, pair * PAIR, out_rows, input_sums[i]);
    }
}

/* One item: a chunk of input rows times a range of the pairs of row tiles. The chunk is interleaved once, and the weights are
 * read from memory once for all of it, a group at a time. A group is as long as fits the cache: long runs of outputs of few input
 * rows are written faster than short runs of many (6144 x 768: 430 instead of 390 Gop/s). */
static void multiply(void *argument, int64_t item, void *scratch)
{
    const struct product *job = argument;
    const int64_t first = item / job->parts * job->chunk, rows = smaller(job->chunk, job->n - first);
    const int64_t padded = blocks_of(job->in, SIDE) * SIDE, pairs = blocks_of(job->out, PAIR), part = item % job->parts;
    const int64_t begin = pairs * part / job->parts, end = pairs * (part + 1) / job->parts;
    const int64_t group = CACHED_BYTES / (padded * PAIR / 4) + 1;
    int8_t *blocks = scratch;
    int32_t input_sums[LARGEST_CHUNK];

    for (int64_t row = 0; row < rows;) {
        int width = 1 << width_for(job->path, rows - row);
        interleave(job->x + (first + row) * job->in, job->in, width, padded / 4, blocks + row * padded);
        for (int i = 0; i < width; i++, row++) input_sums[row] = job->path->sum(job->x + (first + row) * job->in, job->in);
    }

    for (int64_t pair = begin; pair < end; pair += group)
        for (int64_t row = 0; row < rows;) {
            int width = width_for(job->path, rows - row);
            multiply_block(job, width, blocks + row * padded, first + row, input_sums + row, pair, smaller(pair + group, end));
            row += 1 << width;
        }
}

static int run_product(struct product *job, int threads)
{
    const int64_t padded = blocks_of(job->in, SIDE) * SIDE, pairs = blocks_of(job->out, PAIR);
    job->chunk = smaller(LARGEST_CHUNK, CACHED_BYTES / padded / WIDEST * WIDEST);
    if (job->chunk < WIDEST) job->chunk = WIDEST;

    const int64_t chunks = blocks_of(job->n, job->chunk);
    threads = (int)smaller(threads, 1 + job->n * job->out * job->in / MACS_PER_THREAD);
    job->parts = threads < 2 ? 1 : smaller(pairs, blocks_of((int64_t)threads * ITEMS_PER_THREAD, chunks));
    return run(multiply, job, chunks * job->parts, threads, (size_t)(smaller(job->chunk, job->n) * padded));
}

/* sums[n][o] = sum over i of W[o][i] x[n][i]. packed: W (out, in); x: (n, in); sums: (n, out). */
EXPORT int ternary_sums(int path, const uint8_t *packed, int64_t out, int64_t in, const int8_t *x, int64_t n, int32_t *sums, int threads)
{
    struct product job = {usable(path), packed, out, in, x, n, sums, NULL, NULL, NULL, 0, 0};
    return job.path ? run_product(&job, threads) : NO_PATH;
}

/* y[n][o] = sums[n][o] * scale[o] * step[n] in float32. scale: (out) or NULL; step: (n); y: (n, out). */
EXPORT int ternary_product(int path, const uint8_t *packed, int64_t out, int64_t in, const int8_t *x, int64_t n, const float *step,
                           const float *scale, float *y, int threads)
{
    struct product job = {usable(path), packed, out, in, x, n, NULL, y, step, scale, 0, 0};
    return job.path ? run_product(&job, threads) : NO_PATH;
}
