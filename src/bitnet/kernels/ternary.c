/* Products of int8 rows with ternary matrices that are packed at two bits a weight, and a decoder that is made of them.
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
 * Callers check sizes; nothing here can. See arrays.py, and decoder.py for the decoder, which are the only callers.
 *
 * Sections: input blocks, scalar, AVX2, AVX-VNNI, AVX-512 VNNI, NEON, float parts, dense tiles, paths, threads, packing,
 * quantising rows, products; the decoder: dense matrices, attention, one token after another; training passes; and at the end the dense
 * tiles themselves, for which the file includes itself.
 */
#if !defined(LANES)
/* The file as it is makes the whole library. Its parts can also be compiled at the same time and linked (compiler.py): with -DPART=1
 * what all paths share, with 2 the scalar path, with 3 that of 256 bits, with 4 that of 512 bits. The first sees of the others one
 * `struct path` for each path. */
#if !defined(PART)
#define PART 0
#endif
#define IN_PART(NUMBER) (PART == 0 || PART == NUMBER)
#if PART == 0
#define SHARED static
#else
#define SHARED
#endif

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

enum { OK = 0, INVALID_CODE = 1, NO_MEMORY = 2, NO_PATH = 3, INVALID_BATCH = 4 };
enum { SCALAR, AVX2, AVX_VNNI, AVX512_VNNI, NEON, PATHS };

INLINE int64_t blocks_of(int64_t length, int64_t size) { return (length + size - 1) / size; }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* A kernel multiplies two row tiles with a block of input rows. `tiles`: the first tile of the upper rows; `below`: bytes from
 * there to the first tile of the lower rows (0: there are none, and whatever the kernel computes for them is not used);
 * `x`: an input block; `sums`: [input row][PAIR] sums of code times input, written. */
typedef void (*kernel_fn)(const uint8_t *tiles, int64_t below, int64_t k_tiles, const int8_t *x, int32_t *sums);

#if IN_PART(1)
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
#endif

#if IN_PART(2)
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
#endif

INLINE int32_t four_inputs(const int8_t *x)
{
    int32_t word;
    memcpy(&word, x, 4);
    return word;
}

#if defined(__x86_64__)
#include <cpuid.h>
#if PART == 0 || PART > 2
#include <immintrin.h>
#endif

/* ---------------------------------------------------------------------------------------------- AVX2
 *
 * vpmaddubsw adds two products into 16 bits: at most 2 * 2 * 128 = 512 in magnitude. Sixty of those sums still fit (30,720),
 * so 15 tiles of four planes are added in 16 bits before vpmaddwd folds them into 32. A 17th tile would wrap around. */
#define TARGET_AVX2 __attribute__((target("avx2,fma")))
#define FOLD_EVERY 15
/* Without this gcc adds the planes of a tile in a tree, whose leaves do not fit the registers: 250 instead of 340 Gop/s. */
#define KEEP_ORDER(A, B) __asm__("" : "+x"(A), "+x"(B))

#if IN_PART(3)
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
#endif

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

#if defined(HAVE_AVX_VNNI) && IN_PART(3)
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
#endif

#if defined(HAVE_AVX512_VNNI) && IN_PART(4)

/* Two row tiles x 4 or 8 input rows: 8 or 16 accumulators, and each decoded plane is used `width` times. While a pair of row tiles
 * is multiplied, the next pair is fetched: its runs are too short for the processor to guess (95M, 4 rows: 2.2 instead of 1.5 ms).
 * A fetch from beyond the matrix does nothing. */
TARGET_AVX512 INLINE void avx512_body(const uint8_t *tiles, int64_t below, int64_t k_tiles, const int8_t *x, int32_t *sums, const int width)
{
    const __m512i three = _mm512_set1_epi8(3);
    __m512i upper[WIDEST], lower[WIDEST];
    UNROLL for (int n = 0; n < width; n++) upper[n] = lower[n] = _mm512_setzero_si512();

    for (int64_t k = 0; k < k_tiles; k++, tiles += TILE) {
        __m512i u = _mm512_loadu_si512(tiles), v = _mm512_loadu_si512(tiles + below);
        __builtin_prefetch((const void *)((uintptr_t)tiles + 2 * (uintptr_t)below));
        __builtin_prefetch((const void *)((uintptr_t)tiles + 3 * (uintptr_t)below));
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

#if IN_PART(2)
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
#endif
#endif /* aarch64 */

/* ---------------------------------------------------------------------------------------------- float parts
 *
 * Plain C that the compiler vectorises, once per instruction set. The rules are those of bitnet.nn.quantize and
 * bitnet.nn.rms_norm: magnitudes below EPSILON count as EPSILON, codes are rounded half to even. */
#define EPSILON 1e-5f
#define LARGEST_FINE 32639.0f /* 127 * 256 + 127: of 16-bit inputs */
#define DENSE_PAD 32          /* rows of 16-bit inputs are padded to this */
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

/* e^x to about one unit in the last place, for x of up to 88; more counts as 88, and less than -87 as -87. x = n ln 2 + r, and a
 * polynomial (Cephes' expf) for e^r. A NaN stays one. */
INLINE float exp_of(float x)
{
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    const float shifted = x * 1.44269504088896341f + ROUNDING, n = shifted - ROUNDING;
    const float r = x - n * 0.693359375f - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (p * r * r + r + 1.0f) * float_of((uint32_t)(bits_of(shifted) - 0x4B400000 + 127) << 23);
}

/* Scores to e^(score - largest), in place. Returns 1 / their sum. */
INLINE float exponentials(float *score, int64_t count)
{
    float top[16], part[16] = {0};
    for (int lane = 0; lane < 16; lane++) top[lane] = score[0];
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (int lane = 0; lane < 16; lane++) top[lane] = score[i + lane] > top[lane] ? score[i + lane] : top[lane];
    for (; i < count; i++) top[i % 16] = score[i] > top[i % 16] ? score[i] : top[i % 16];
    for (int half = 8; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) top[lane] = top[lane + half] > top[lane] ? top[lane + half] : top[lane];

    for (i = 0; i < count; i++) score[i] = exp_of(score[i] - top[0]);
    for (i = 0; i + 16 <= count; i += 16)
        for (int lane = 0; lane < 16; lane++) part[lane] += score[i + lane];
    for (; i < count; i++) part[i % 16] += score[i];
    for (int half = 8; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) part[lane] += part[lane + half];
    return 1.0f / part[0];
}

/* What comes before a product in a decoder, row by row: a residual is added, or a feed-forward layer's gate is applied, then a
 * norm, then the inputs are quantised; each where it is asked for. */
struct preparing {
    const float *residual; /* (n, in) added to rows.x in place; or NULL */
    const float *gate_up;  /* (n, 2 in): rows.x becomes activation(gate) * up; or NULL */
    int64_t relu2;         /* the activation is relu(x)^2, not x * sigmoid(x) */
    int64_t int8_inputs;   /* rows.codes and rows.step are written */
    float *values;         /* (n, stride) written: what a dense product takes, see "dense tiles"; or NULL */
    int64_t stride, group; /* floats of a row; inputs of a group of 16-bit inputs, 0 for floats */
    float *fine_step;      /* (n) written: the step of 16-bit inputs */
    struct rows rows;      /* rows.x (n, in) float32 */
};

/* 16-bit inputs of a row: x = q * step, q = 256 high + low. `out`: q, then high, then low, each for `in` rounded up to DENSE_PAD and
 * zero beyond in, then the sum of q for each group. */
INLINE float quantize_finely(const float *x, int64_t in, int64_t group, void *out)
{
    const int64_t room = (in + DENSE_PAD - 1) / DENSE_PAD * DENSE_PAD;
    int16_t *q = out;
    int8_t *high = (int8_t *)(q + room), *low = high + room;
    int32_t *sums = (int32_t *)(low + room), top = 0;
    for (int64_t i = 0; i < in; i++) {
        int32_t magnitude = bits_of(x[i]) & 0x7FFFFFFF;
        top = magnitude > top ? magnitude : top;
    }
    float largest = float_of((uint32_t)top), inverse = 0;
    if (largest < 1e-30f) largest = 1e-30f;
    if (top < 0x7F800000) inverse = LARGEST_FINE / largest;

    for (int64_t i = 0; i < in; i++) { /* 0 * infinity is no number: a row that is not finite has codes of 0, and its step tells */
        int32_t code = inverse > 0 ? bits_of(x[i] * inverse + ROUNDING) - 0x4B400000 : 0, upper = (code + 128) >> 8;
        q[i] = (int16_t)code, high[i] = (int8_t)upper, low[i] = (int8_t)(code - upper * 256);
    }
    for (int64_t i = in; i < room; i++) q[i] = 0, high[i] = 0, low[i] = 0;
    for (int64_t first = 0; first < room; first += group) {
        int32_t sum = 0;
        for (int64_t i = first; i < smaller(first + group, room); i++) sum += q[i];
        sums[first / group] = sum;
    }
    return top < 0x7F800000 ? largest / LARGEST_FINE : largest;
}

/* The same from int8 codes: high is 0, low the code, and the step stays the caller's. */
INLINE void spread_codes(const int8_t *codes, int64_t in, int64_t group, void *out)
{
    const int64_t room = (in + DENSE_PAD - 1) / DENSE_PAD * DENSE_PAD;
    int16_t *q = out;
    int8_t *high = (int8_t *)(q + room), *low = high + room;
    int32_t *sums = (int32_t *)(low + room);
    for (int64_t i = 0; i < in; i++) q[i] = codes[i];
    for (int64_t i = in; i < room; i++) q[i] = 0;
    memset(high, 0, (size_t)room);
    memcpy(low, codes, (size_t)in);
    memset(low + in, 0, (size_t)(room - in));
    for (int64_t first = 0; first < room; first += group) {
        int32_t sum = 0;
        for (int64_t i = first; i < smaller(first + group, room); i++) sum += q[i];
        sums[first / group] = sum;
    }
}

INLINE void apply_gate(const float *gate, const float *up, int64_t in, int64_t relu2, float *out)
{
    if (relu2) /* a NaN stays one */
        for (int64_t i = 0; i < in; i++) {
            float positive = gate[i] < 0 ? 0 : gate[i];
            out[i] = positive * positive * up[i];
        }
    else
        for (int64_t i = 0; i < in; i++) out[i] = gate[i] / (1.0f + exp_of(-gate[i])) * up[i];
}

INLINE void prepare_row(const struct preparing *job, int64_t row, float *work)
{
    const int64_t in = job->rows.in;
    float *x = (float *)job->rows.x + row * in;
    if (job->residual)
        for (int64_t i = 0; i < in; i++) x[i] += job->residual[row * in + i];
    if (job->gate_up) apply_gate(job->gate_up + 2 * row * in, job->gate_up + (2 * row + 1) * in, in, job->relu2, x);
    if (job->int8_inputs) quantize_row(&job->rows, row, work);
    if (!job->values) return;

    float *values = job->values + row * job->stride;
    const int8_t *codes = job->rows.codes + row * in;
    if (job->int8_inputs && job->group) {
        spread_codes(codes, in, job->group, values);
        job->fine_step[row] = job->rows.step[row];
        return;
    }

    const float *source = work;
    if (job->int8_inputs)
        for (int64_t i = 0; i < in; i++) work[i] = (float)codes[i] * job->rows.step[row];
    else
        source = row_values(&job->rows, row, work);
    if (job->group) job->fine_step[row] = quantize_finely(source, in, job->group, values);
    else memcpy(values, source, (size_t)in * sizeof(float));
}

typedef void (*quantize_fn)(const struct rows *job, int64_t row, float *work);
typedef void (*prepare_fn)(const struct preparing *job, int64_t row, float *work);
typedef float (*exponentials_fn)(float *score, int64_t count);
typedef int32_t (*sum_fn)(const int8_t *x, int64_t in);
typedef void (*finish_fn)(const struct product *job, const int32_t *sums, int64_t n, int64_t first, int64_t count, int32_t input_sum);

#define FLOAT_PARTS(NAME, TARGET) \
    TARGET static void prepare_##NAME(const struct preparing *job, int64_t row, float *work) { prepare_row(job, row, work); } \
    TARGET static float exponentials_##NAME(float *score, int64_t count) { return exponentials(score, count); } \
    TARGET static void quantize_##NAME(const struct rows *job, int64_t row, float *work) { quantize_row(job, row, work); } \
    TARGET static int32_t sum_##NAME(const int8_t *x, int64_t in) { return sum_of_inputs(x, in); } \
    TARGET static void finish_##NAME(const struct product *job, const int32_t *s, int64_t n, int64_t first, int64_t count, int32_t sum) \
    { \
        finish_rows(job, s, n, first, count, sum); \
    }
#if IN_PART(2)
FLOAT_PARTS(plain, )
#endif
#if defined(__x86_64__) && IN_PART(3)
FLOAT_PARTS(avx2, TARGET_AVX2)
#endif
#if defined(HAVE_AVX512_VNNI) && IN_PART(4)
FLOAT_PARTS(avx512, TARGET_AVX512)
#endif

/* ---------------------------------------------------------------------------------------------- dense tiles
 *
 * A tile of a dense matrix is 16 output rows with all their inputs, interleaved so that no kernel adds lanes to each other:
 *
 *     float32   [input][row]            bfloat16  [input][row]
 *     int8      [input / 4][row][4]     bytes are code + 128;   value = code * scale[row]
 *     int4      [input / 8][row][4]     byte b holds inputs b (low half) and 4 + b, each code + 8;   value = code * scale, one
 *                                       scale (bfloat16, [input / 32][row]) for 32 inputs of a row
 *
 * A kernel multiplies one tile with 1 or 4 (float32: also 2) input rows that are `stride` floats apart. Floats are added in the order of the
 * inputs, so that all paths give the same bits. The integer formats take 16-bit inputs (quantize_finely), add exactly within a
 * group of inputs, and then add the groups' sums as floats. A sum of 256 codes of up to 255 times inputs of up to 32,639 stays
 * below 2^31. The cache of keys (16 positions x head width) and of values (16 dimensions x positions) are float32 tiles. */
enum { TERNARY, FLOAT32, BFLOAT16, INT8, INT4, FORMATS };
enum { INT8_BYTES = FORMATS, INT4_BYTES, KERNELS }; /* kernels of INT8 and INT4 for inputs whose high bytes are all 0 */

typedef void (*tile_fn)(const void *tile, const uint16_t *scale, int64_t in, const float *x, int64_t stride, float *y);

#define INT8_GROUP 256
#define INT4_GROUP 32 /* inputs of one scale */

INLINE int64_t rounded_up(int64_t size, int64_t side) { return (size + side - 1) / side * side; }
#if IN_PART(2)
#define LANES 4
#define SUFFIX plain
#define TARGET_TILES
#include "ternary.c"
#endif
#if defined(__x86_64__) && IN_PART(3)
#define LANES 8
#define SUFFIX avx2
#define TARGET_TILES TARGET_AVX2
#include "ternary.c"
#endif
#if defined(HAVE_AVX512_VNNI) && IN_PART(4)
#define LANES 16
#define SUFFIX avx512
#define TARGET_TILES TARGET_AVX512
#define FLOAT_TILES_ONLY
#include "ternary.c"

/* The integer formats by dot product instructions: the high and the low byte of the inputs by themselves, whose sums are put
 * together at the end of each group. The offset of the codes is taken away there, by the sum of the group's inputs. */
TARGET_AVX512 INLINE void vnni_group(__m512i high[4], __m512i low[4], __m512i codes, const int8_t *x, int64_t room, int64_t stride, const int width)
{
    UNROLL for (int n = 0; n < width; n++) {
        high[n] = _mm512_dpbusd_epi32(high[n], codes, _mm512_set1_epi32(four_inputs(x + 4 * n * stride)));
        low[n] = _mm512_dpbusd_epi32(low[n], codes, _mm512_set1_epi32(four_inputs(x + 4 * n * stride + room)));
        __asm__("" : "+v"(high[n]), "+v"(low[n])); /* without this gcc copies every accumulator twice */
    }
}

TARGET_AVX512 INLINE __m512 vnni_sum(__m512i high, __m512i low, int offset, int32_t inputs)
{
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low), _mm512_set1_epi32(offset * inputs)));
}

TARGET_AVX512 INLINE void vnni_int8(const uint8_t *w, int64_t in, const float *x, int64_t stride, float *y, const int width)
{
    const int64_t room = rounded_up(in, DENSE_PAD);
    const int8_t *high_bytes = (const int8_t *)x + 2 * room;
    const int32_t *sums = (const int32_t *)(high_bytes + 2 * room);
    __m512 acc[4];
    UNROLL for (int n = 0; n < width; n++) acc[n] = _mm512_setzero_ps();

    for (int64_t first = 0; first < in; first += INT8_GROUP) {
        __m512i high[4], low[4];
        UNROLL for (int n = 0; n < width; n++) high[n] = low[n] = _mm512_setzero_si512();
        for (int64_t i = first; i < smaller(in, first + INT8_GROUP); i += 4, w += TILE)
            vnni_group(high, low, _mm512_loadu_si512(w), high_bytes + i, room, stride, width);
        UNROLL for (int n = 0; n < width; n++) acc[n] = _mm512_add_ps(acc[n], vnni_sum(high[n], low[n], 128, sums[n * stride + first / INT8_GROUP]));
    }
    UNROLL for (int n = 0; n < width; n++) _mm512_storeu_ps(y + n * SIDE, acc[n]);
}

TARGET_AVX512 INLINE void vnni_int4(const uint8_t *w, const uint16_t *scale, int64_t in, const float *x, int64_t stride, float *y, const int width)
{
    const int64_t room = rounded_up(in, DENSE_PAD);
    const int8_t *high_bytes = (const int8_t *)x + 2 * room;
    const int32_t *sums = (const int32_t *)(high_bytes + 2 * room);
    const __m512i half = _mm512_set1_epi8(15);
    __m512 acc[4];
    UNROLL for (int n = 0; n < width; n++) acc[n] = _mm512_setzero_ps();

    for (int64_t first = 0; first < in; first += INT4_GROUP, scale += SIDE) {
        __m512i high[4], low[4];
        UNROLL for (int n = 0; n < width; n++) high[n] = low[n] = _mm512_setzero_si512();
        UNROLL for (int i = 0; i < INT4_GROUP; i += 8, w += TILE) {
            __m512i codes = _mm512_loadu_si512(w);
            vnni_group(high, low, _mm512_and_si512(codes, half), high_bytes + first + i, room, stride, width);
            vnni_group(high, low, _mm512_and_si512(_mm512_srli_epi32(codes, 4), half), high_bytes + first + i + 4, room, stride, width);
        }
        __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)scale)), 16);
        UNROLL for (int n = 0; n < width; n++) {
            __m512 sum = vnni_sum(high[n], low[n], 8, sums[n * stride + first / INT4_GROUP]);
            acc[n] = _mm512_add_ps(acc[n], _mm512_mul_ps(sum, _mm512_castsi512_ps(bits)));
        }
    }
    UNROLL for (int n = 0; n < width; n++) _mm512_storeu_ps(y + n * SIDE, acc[n]);
}

/* Inputs whose high bytes are 0: half the products. Two accumulators for each row, because one chain would wait for itself. */
TARGET_AVX512 INLINE void vnni_bytes(__m512i low[8][2], __m512i codes, const int8_t *x, int64_t stride, const int chain, const int width)
{
    UNROLL for (int n = 0; n < width; n++) {
        low[n][chain] = _mm512_dpbusd_epi32(low[n][chain], codes, _mm512_set1_epi32(four_inputs(x + 4 * n * stride)));
        __asm__("" : "+v"(low[n][chain])); /* as in vnni_group */
    }
}

TARGET_AVX512 INLINE __m512 vnni_bytes_sum(const __m512i low[2], int offset, int32_t inputs)
{
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_add_epi32(low[0], low[1]), _mm512_set1_epi32(offset * inputs)));
}

TARGET_AVX512 INLINE void bytes_int8(const uint8_t *w, int64_t in, const float *x, int64_t stride, float *y, const int width)
{
    const int64_t room = rounded_up(in, DENSE_PAD);
    const int8_t *bytes = (const int8_t *)x + 3 * room;
    const int32_t *sums = (const int32_t *)(bytes + room);
    __m512 acc[8];
    UNROLL for (int n = 0; n < width; n++) acc[n] = _mm512_setzero_ps();

    for (int64_t first = 0; first < in; first += INT8_GROUP) {
        __m512i low[8][2];
        UNROLL for (int n = 0; n < width; n++) low[n][0] = low[n][1] = _mm512_setzero_si512();
        const int64_t end = smaller(in, first + INT8_GROUP);
        int64_t i = first;
        for (; i + 4 < end; i += 8, w += 2 * TILE) {
            vnni_bytes(low, _mm512_loadu_si512(w), bytes + i, stride, 0, width);
            vnni_bytes(low, _mm512_loadu_si512(w + TILE), bytes + i + 4, stride, 1, width);
        }
        if (i < end) vnni_bytes(low, _mm512_loadu_si512(w), bytes + i, stride, 0, width), w += TILE;
        UNROLL for (int n = 0; n < width; n++)
            acc[n] = _mm512_add_ps(acc[n], vnni_bytes_sum(low[n], 128, sums[n * stride + first / INT8_GROUP]));
    }
    UNROLL for (int n = 0; n < width; n++) _mm512_storeu_ps(y + n * SIDE, acc[n]);
}

TARGET_AVX512 INLINE void bytes_int4(const uint8_t *w, const uint16_t *scale, int64_t in, const float *x, int64_t stride, float *y, const int width)
{
    const int64_t room = rounded_up(in, DENSE_PAD);
    const int8_t *bytes = (const int8_t *)x + 3 * room;
    const int32_t *sums = (const int32_t *)(bytes + room);
    const __m512i half = _mm512_set1_epi8(15);
    __m512 acc[8];
    UNROLL for (int n = 0; n < width; n++) acc[n] = _mm512_setzero_ps();

    for (int64_t first = 0; first < in; first += INT4_GROUP, scale += SIDE) {
        __m512i low[8][2];
        UNROLL for (int n = 0; n < width; n++) low[n][0] = low[n][1] = _mm512_setzero_si512();
        UNROLL for (int i = 0; i < INT4_GROUP; i += 8, w += TILE) {
            __m512i codes = _mm512_loadu_si512(w);
            vnni_bytes(low, _mm512_and_si512(codes, half), bytes + first + i, stride, 0, width);
            vnni_bytes(low, _mm512_and_si512(_mm512_srli_epi32(codes, 4), half), bytes + first + i + 4, stride, 1, width);
        }
        __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)scale)), 16);
        UNROLL for (int n = 0; n < width; n++) {
            __m512 sum = vnni_bytes_sum(low[n], 8, sums[n * stride + first / INT4_GROUP]);
            acc[n] = _mm512_add_ps(acc[n], _mm512_mul_ps(sum, _mm512_castsi512_ps(bits)));
        }
    }
    UNROLL for (int n = 0; n < width; n++) _mm512_storeu_ps(y + n * SIDE, acc[n]);
}

#define VNNI_TILES(KIND, WIDTH) \
    TARGET_AVX512 static void int8_##KIND##_##WIDTH(const void *w, const uint16_t *scale, int64_t in, const float *x, int64_t stride, float *y) \
    { \
        (void)scale, KIND##_int8(w, in, x, stride, y, WIDTH); \
    } \
    TARGET_AVX512 static void int4_##KIND##_##WIDTH(const void *w, const uint16_t *scale, int64_t in, const float *x, int64_t stride, float *y) \
    { \
        KIND##_int4(w, scale, in, x, stride, y, WIDTH); \
    }
VNNI_TILES(vnni, 1)
VNNI_TILES(vnni, 4)
VNNI_TILES(bytes, 1)
VNNI_TILES(bytes, 4)

#endif

#define TILES(NAME, FLOATS, INTEGERS, BYTES) \
    static const tile_fn tiles_##NAME[KERNELS][3] = { \
        [FLOAT32] = {float32_##FLOATS##_1, float32_##FLOATS##_2, float32_##FLOATS##_4}, \
        [BFLOAT16] = {bfloat16_##FLOATS##_1, NULL, bfloat16_##FLOATS##_4}, \
        [INT8] = {int8_##INTEGERS##_1, NULL, int8_##INTEGERS##_4}, \
        [INT4] = {int4_##INTEGERS##_1, NULL, int4_##INTEGERS##_4}, \
        [INT8_BYTES] = {int8_##BYTES##_1, NULL, int8_##BYTES##_4}, \
        [INT4_BYTES] = {int4_##BYTES##_1, NULL, int4_##BYTES##_4}, \
    };
/* ---------------------------------------------------------------------------------------------- paths */
struct path {
    kernel_fn kernel[4]; /* for 1, 2, 4, 8 input rows; NULL where a path has none */
    quantize_fn quantize;
    sum_fn sum;
    finish_fn finish;
    prepare_fn prepare;
    exponentials_fn exponentials;
    const tile_fn (*tile)[3]; /* [format or kernel][for 1, 2, 4 input rows]; NULL where there is none */
};
#define FLOATS(NAME, TILES) quantize_##NAME, sum_##NAME, finish_##NAME, prepare_##NAME, exponentials_##NAME, tiles_##TILES

#if PART == 1 /* what the other parts have; a machine or compiler may know fewer */
extern const struct path path_scalar, path_avx2, path_avx_vnni, path_avx512_vnni, path_neon;
#endif
#if IN_PART(2)
TILES(plain, plain, plain, plain)
SHARED const struct path path_scalar = {{scalar_1, scalar_2, scalar_4, NULL}, FLOATS(plain, plain)};
#endif
#if IN_PART(3) && defined(__x86_64__)
TILES(avx2, avx2, avx2, avx2)
SHARED const struct path path_avx2 = {{avx2_1, avx2_2, avx2_4, NULL}, FLOATS(avx2, avx2)};
#endif
#if IN_PART(3) && defined(HAVE_AVX_VNNI)
SHARED const struct path path_avx_vnni = {{avx_vnni_1, avx_vnni_2, avx_vnni_4, NULL}, FLOATS(avx2, avx2)};
#endif
#if IN_PART(4) && defined(HAVE_AVX512_VNNI)
TILES(vnni, avx512, vnni, bytes)
SHARED const struct path path_avx512_vnni = {{avx512_1, avx512_2, avx512_4, avx512_8}, FLOATS(avx512, vnni)};
#endif
#if IN_PART(2) && defined(__aarch64__)
SHARED const struct path path_neon = {{neon_1, NULL, neon_4, NULL}, FLOATS(plain, plain)};
#endif

#if IN_PART(1)
static const struct path *const paths[PATHS] = {
    [SCALAR] = &path_scalar,
#if defined(__x86_64__)
    [AVX2] = &path_avx2,
#endif
#if defined(HAVE_AVX_VNNI)
    [AVX_VNNI] = &path_avx_vnni,
#endif
#if defined(HAVE_AVX512_VNNI)
    [AVX512_VNNI] = &path_avx512_vnni,
#endif
#if defined(__aarch64__)
    [NEON] = &path_neon,
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
    return path >= 0 && path < PATHS && (ternary_paths() >> path & 1) ? paths[path] : NULL;
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

/* ============================================================================================== THE DECODER
 *
 * Token ids to logits for a transformer of bitnet.nn.transformer's kind, in one call: embedding, for each layer RMSNorm, fused
 * q, k, v, rotary positions, grouped-query attention with a cache of keys and values, feed-forward; then the last norm and the
 * head. A batch is a list of tokens, each of which names its text (a row of the cache) and its position there. Reading a prompt
 * is many tokens of one text, a step of decoding is one token of each text, and both are this one function.
 *
 * Layers are ternary or dense. All float sums are taken in a fixed order, so that every path and any number of threads give the
 * same bits, and a token's logits do not depend on what else is in the batch. */
#define CHUNK 128 /* tokens that pass through the layers together: bounds the working memory */
#define BLOCK 8   /* tokens of one text that one item of attention takes */

struct matrix {
    const void *data;    /* tiles of the format */
    const void *scale;   /* ternary and int8: float32 (out); int4: bfloat16 [tile][in / 32][16]; else NULL */
    int64_t out, in;
    int64_t format;
    int64_t int8_inputs; /* the inputs are quantised to int8 first, which a ternary matrix needs */
};

struct layer {
    const float *attn_norm, *ffn_norm;         /* (width) */
    const float *attn_sub_norm, *ffn_sub_norm; /* (width), (inner); or NULL */
    struct matrix qkv, attn_out, gate_up, down;
};

struct model {
    int64_t vocab, width, layers, heads, kv_heads, head_dim, inner, length;
    int64_t relu2;
    double eps;
    const float *cos, *sin; /* (length, head_dim / 2) */
    const float *final_norm;
    const struct layer *layer;
    struct matrix embeddings, head;
};

struct batch {
    int64_t tokens;
    const int64_t *ids, *row, *position; /* (tokens); positions of one row follow each other */
    int64_t rows;
    float *const *cache;                 /* (rows) keys and values of each text, see cache_of */
    const int64_t *capacity;             /* (rows) positions that it has room for, a multiple of 16 */
    int64_t wanted;
    const int64_t *want;                 /* (wanted) ascending indices of tokens whose logits are wanted */
    float *logits;                       /* (wanted, vocab) written */
};

/* ---------------------------------------------------------------------------------------------- dense matrices */
/* Floats of one row of inputs: themselves, or q, high, low and the sums of its smallest groups. */
static int64_t row_floats(int64_t in) { return rounded_up(in, DENSE_PAD) + rounded_up(in, DENSE_PAD) / INT4_GROUP; }

static int64_t tile_bytes(int64_t format, int64_t in)
{
    return format == FLOAT32    ? in * SIDE * 4
           : format == BFLOAT16 ? in * SIDE * 2
           : format == INT8     ? rounded_up(in, 4) * SIDE
                                : rounded_up(in, INT4_GROUP) * SIDE / 2;
}

struct dense_packing {
    int64_t format, out, in;
    const float *weight; /* (out, in) */
    uint8_t *data;
    void *scale;
    int invalid; /* a weight was not finite */
};

static float largest_magnitude(const float *x, int64_t count)
{
    float largest = 0;
    for (int64_t i = 0; i < count; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    return largest;
}

/* The scale of one row's int4 group, and its codes from -8 to 7: of a few ways to stretch the group, the one with the smallest
 * squared error after its scale is fitted by least squares. */
static float int4_group(const float *x, int64_t count, int8_t *codes)
{
    float largest = 0, best_gain = -1, best_scale = 0;
    for (int64_t i = 0; i < count; i++)
        if (fabsf(x[i]) > fabsf(largest)) largest = x[i];
    memset(codes, 0, INT4_GROUP);
    if (largest == 0) return 0;

    for (int stretch = 0; stretch < 6; stretch++) {
        const float inverse = (-8.5f + 0.3f * (float)stretch) / largest;
        int8_t tried[INT4_GROUP];
        float dot = 0, square = 0;
        for (int64_t i = 0; i < count; i++) {
            float code = rintf(x[i] * inverse);
            code = code > 7 ? 7 : code < -8 ? -8 : code;
            tried[i] = (int8_t)code, dot += x[i] * code, square += code * code;
        }
        if (square > 0 && dot * dot / square > best_gain) /* what it takes away from the error */
            best_gain = dot * dot / square, best_scale = dot / square, memcpy(codes, tried, (size_t)count);
    }
    return best_scale;
}

/* One row of a tile: lane r of it. */
static void pack_dense_row(struct dense_packing *job, int64_t row, uint8_t *tile)
{
    const float *x = job->weight + row * job->in;
    const int64_t r = row % SIDE, in = job->in;
    if (job->format == FLOAT32)
        for (int64_t i = 0; i < in; i++) ((float *)tile)[i * SIDE + r] = x[i];
    if (job->format == BFLOAT16)
        for (int64_t i = 0; i < in; i++) ((uint16_t *)tile)[i * SIDE + r] = (uint16_t)((uint32_t)bits_of(rounded_to_bf16(x[i])) >> 16);
    if (job->format == INT8) {
        const float largest = largest_magnitude(x, in), inverse = largest > 0 ? 127.0f / largest : 0;
        ((float *)job->scale)[row] = largest / 127.0f;
        for (int64_t i = 0; i < rounded_up(in, 4); i++)
            tile[i / 4 * TILE + 4 * r + i % 4] = (uint8_t)(128 + (i < in ? (int)rintf(x[i] * inverse) : 0));
    }
    if (job->format == INT4)
        for (int64_t i = 0; i < in; i += INT4_GROUP) {
            int8_t codes[INT4_GROUP];
            float scale = int4_group(x + i, smaller(INT4_GROUP, in - i), codes);
            uint16_t *scales = (uint16_t *)job->scale + (row / SIDE * blocks_of(in, INT4_GROUP) + i / INT4_GROUP) * SIDE;
            scales[r] = (uint16_t)((uint32_t)bits_of(rounded_to_bf16(scale)) >> 16);
            for (int k = 0; k < INT4_GROUP; k++)
                if (k % 8 < 4)
                    tile[(i + k) / 8 * TILE + 4 * r + k % 4] = (uint8_t)((codes[k] + 8) | (codes[k + 4] + 8) << 4);
        }
}

static void pack_dense_tile(void *argument, int64_t item, void *scratch)
{
    struct dense_packing *job = argument;
    const int64_t size = tile_bytes(job->format, job->in);
    uint8_t *tile = job->data + item * size;
    (void)scratch;

    memset(tile, job->format == INT8 ? 128 : job->format == INT4 ? 0x88 : 0, (size_t)size);
    if (job->format == INT4)
        memset((uint16_t *)job->scale + item * blocks_of(job->in, INT4_GROUP) * SIDE, 0, (size_t)(blocks_of(job->in, INT4_GROUP) * SIDE * 2));
    for (int64_t row = item * SIDE; row < smaller((item + 1) * SIDE, job->out); row++) {
        if (!(largest_magnitude(job->weight + row * job->in, job->in) < INFINITY)) job->invalid = 1;
        else pack_dense_row(job, row, tile);
    }
}

/* weight: (out, in) float32. data, scale: as struct matrix says, for a format that is not ternary. A weight of infinity is
 * INVALID_CODE; one that is NaN has a code of any value. */
EXPORT int decoder_pack(int64_t format, const float *weight, int64_t out, int64_t in, void *data, void *scale, int threads)
{
    if (format <= TERNARY || format >= FORMATS) return INVALID_BATCH;
    struct dense_packing job = {format, out, in, weight, data, scale, 0};
    int status = run(pack_dense_tile, &job, blocks_of(out, SIDE), threads, 0);
    return status != OK ? status : job.invalid ? INVALID_CODE : OK;
}

/* codes (out, in) = weight / scale[row], rounded half to even and clipped to -1, 0, 1: the rule of bitnet.nn.quantize. */
EXPORT void decoder_ternarize(const float *weight, int64_t out, int64_t in, const float *scale, int8_t *codes)
{
    for (int64_t o = 0; o < out; o++)
        for (int64_t i = 0; i < in; i++) {
            float value = weight[o * in + i] / scale[o]; /* rounds to 1 from just above a half: half itself goes to the even 0 */
            codes[o * in + i] = (int8_t)((value > 0.5f) - (value < -0.5f));
        }
}

/* One row of a dense matrix in float32: how an embedding is looked up. */
static void dense_row(const struct matrix *m, int64_t row, float *out)
{
    const uint8_t *tile = (const uint8_t *)m->data + row / SIDE * tile_bytes(m->format, m->in);
    const int64_t r = row % SIDE;
    for (int64_t i = 0; i < m->in; i++) {
        if (m->format == FLOAT32) out[i] = ((const float *)tile)[i * SIDE + r];
        if (m->format == BFLOAT16) out[i] = float_of((uint32_t)((const uint16_t *)tile)[i * SIDE + r] << 16);
        if (m->format == INT8) out[i] = (float)(tile[i / 4 * TILE + 4 * r + i % 4] - 128) * ((const float *)m->scale)[row];
        if (m->format == INT4) {
            const uint16_t *scales = (const uint16_t *)m->scale + (row / SIDE * blocks_of(m->in, INT4_GROUP) + i / INT4_GROUP) * SIDE;
            int code = (tile[i / 8 * TILE + 4 * r + i % 4] >> (i % 8 / 4 * 4) & 15) - 8;
            out[i] = (float)code * float_of((uint32_t)scales[r] << 16);
        }
    }
}

struct dense_product {
    const struct path *path;
    const struct matrix *matrix;
    const float *x;    /* (n, stride) */
    const float *step; /* (n) of 16-bit inputs */
    int64_t stride, n;
    float *y;          /* (n, out) written */
    int64_t parts;
};

/* To its place: y [input row][16] of tile `t` for some input rows from `first` on, times scales and steps. */
static void finish_tile(const struct dense_product *job, int64_t t, int64_t first, int64_t count, const float *y)
{
    const struct matrix *m = job->matrix;
    const float *scale = m->format == INT8 ? (const float *)m->scale + t * SIDE : NULL;
    const int64_t rows = smaller(SIDE, m->out - t * SIDE);
    for (int64_t n = first; n < first + count; n++, y += SIDE) {
        const float step = m->format >= INT8 ? job->step[n] : 1.0f;
        float *out = job->y + n * m->out + t * SIDE;
        if (scale)
            for (int64_t r = 0; r < rows; r++) out[r] = y[r] * scale[r] * step;
        else
            for (int64_t r = 0; r < rows; r++) out[r] = y[r] * step;
    }
}

/* A range of tiles times all input rows, a group of tiles at a time, as in multiply: writing 8 rows of logits a tile at a time takes
 * half as long again as writing 4 of them in longer runs, twice. */
static void dense_multiply(void *argument, int64_t item, void *scratch)
{
    const struct dense_product *job = argument;
    const struct matrix *m = job->matrix;
    const int64_t tiles = blocks_of(m->out, SIDE), size = tile_bytes(m->format, m->in), end = tiles * (item + 1) / job->parts;
    const int64_t group = CACHED_BYTES / size + 1, kernel = m->format + (m->format >= INT8 && m->int8_inputs ? INT8_BYTES - INT8 : 0);
    (void)scratch;

    for (int64_t begin = tiles * item / job->parts; begin < end; begin += group)
        for (int64_t n = 0, rows; n < job->n; n += rows) {
            rows = job->n - n >= 4 ? 4 : 1;
            for (int64_t t = begin; t < smaller(begin + group, end); t++) {
                const uint16_t *scale = m->format == INT4 ? (const uint16_t *)m->scale + t * blocks_of(m->in, INT4_GROUP) * SIDE : NULL;
                float y[4 * SIDE];
                job->path->tile[kernel][rows / 2]((const uint8_t *)m->data + t * size, scale, m->in, job->x + n * job->stride, job->stride, y);
                finish_tile(job, t, n, rows, y);
            }
        }
}

/* ---------------------------------------------------------------------------------------------- attention */

/* A text's cache: for each layer and key/value head the keys as tiles [position / 16][dimension][16 positions], then the values as
 * tiles [dimension / 16][position][16 dimensions]. */
static int64_t head_floats(const struct model *m, int64_t capacity) { return capacity * (m->head_dim + rounded_up(m->head_dim, SIDE)); }
static float *cache_of(const struct model *m, const struct batch *b, int64_t row, int64_t layer, int64_t g)
{
    return b->cache[row] + (layer * m->kv_heads + g) * head_floats(m, b->capacity[row]);
}

struct call { /* what happens to one chunk of tokens; its buffers are in the caller's workspace */
    const struct path *path;
    const struct model *model;
    const struct batch *batch;
    int threads;
    int64_t layer, n;
    int64_t row[CHUNK], position[CHUNK], block[CHUNK + 1], blocks;
    int64_t longest; /* positions of the longest text, rounded up to 16 */
    float *x, *y;    /* (n, width) the residual stream, and what is added to it next */
    float *qkv;      /* (n, (heads + 2 kv_heads) head_dim) */
    float *gate_up;  /* (n, 2 inner) */
    float *mixed;    /* (n, width or inner) outputs of attention, or of the gate */
    float *values;   /* (n, stride) inputs of a dense product */
    int8_t *codes;   /* (n, in) inputs of a ternary product, with their steps */
    float *step, *fine_step, *inverse;
};

static void turn(float *head, int64_t half, const float *cos, const float *sin)
{
    for (int64_t i = 0; i < half; i++) {
        const float a = head[i], b = head[i + half];
        head[i] = a * cos[i] - b * sin[i];
        head[i + half] = b * cos[i] + a * sin[i];
    }
}

/* Turn a token's queries and keys by its position, and put keys and values into the cache. */
static void store(void *argument, int64_t t, void *scratch)
{
    const struct call *c = argument;
    const struct model *m = c->model;
    const int64_t d = m->head_dim, at = c->position[t], capacity = c->batch->capacity[c->row[t]];
    float *q = c->qkv + t * (m->heads + 2 * m->kv_heads) * d;
    const float *cos = m->cos + at * (d / 2), *sin = m->sin + at * (d / 2);
    (void)scratch;

    for (int64_t h = 0; h < m->heads + m->kv_heads; h++) turn(q + h * d, d / 2, cos, sin);
    for (int64_t g = 0; g < m->kv_heads; g++) {
        const float *k = q + (m->heads + g) * d, *v = k + m->kv_heads * d;
        float *keys = cache_of(m, c->batch, c->row[t], c->layer, g), *values = keys + capacity * d;
        for (int64_t i = 0; i < d; i++) keys[(at / SIDE * d + i) * SIDE + at % SIDE] = k[i];
        for (int64_t i = 0; i < rounded_up(d, SIDE); i++) values[(i / SIDE * capacity + at) * SIDE + i % SIDE] = i < d ? v[i] : 0;
    }
}

/* Up to four queries of one text and one key/value head. token[i], head[i]: whose they are. */
static void attend_to_few(const struct call *c, const int64_t *token, const int64_t *head, int count, int64_t g, float *scratch)
{
    const struct model *m = c->model;
    const int width = count > 2 ? 2 : count - 1;
    const int64_t d = m->head_dim, row = c->row[token[0]], capacity = c->batch->capacity[row];
    const float *keys = cache_of(m, c->batch, row, c->layer, g), *values = keys + capacity * d;
    float *q = scratch, *scores = q + 4 * d, tile[4 * SIDE], inverse[4] = {0};
    int64_t reach = 0; /* positions that the last of these tokens sees */

    for (int i = 0; i < 1 << width; i++) {
        const int from = i < count ? i : count - 1;
        const float *query = c->qkv + (token[from] * (m->heads + 2 * m->kv_heads) + head[from]) * d;
        for (int64_t k = 0; k < d; k++) q[i * d + k] = query[k] * (1.0f / sqrtf((float)d));
        if (c->position[token[from]] >= reach) reach = c->position[token[from]] + 1;
    }

    for (int64_t b = 0; b < blocks_of(reach, SIDE); b++) {
        c->path->tile[FLOAT32][width](keys + b * d * SIDE, NULL, d, q, d, tile);
        for (int i = 0; i < 1 << width; i++) memcpy(scores + i * c->longest + b * SIDE, tile + i * SIDE, SIDE * sizeof(float));
    }
    for (int i = 0; i < 1 << width; i++) {
        const int64_t seen = c->position[token[i < count ? i : count - 1]] + 1;
        inverse[i] = c->path->exponentials(scores + i * c->longest, seen);
        for (int64_t k = seen; k < reach; k++) scores[i * c->longest + k] = 0;
    }

    for (int64_t part = 0; part < blocks_of(d, SIDE); part++) {
        c->path->tile[FLOAT32][width](values + part * capacity * SIDE, NULL, reach, scores, c->longest, tile);
        for (int i = 0; i < count; i++) {
            float *out = c->mixed + token[i] * m->width + head[i] * d + part * SIDE;
            for (int64_t k = 0; k < smaller(SIDE, d - part * SIDE); k++) out[k] = tile[i * SIDE + k] * inverse[i];
        }
    }
}

/* One item: a block of tokens of one text, and one key/value head with the query heads that share it. */
static void attend(void *argument, int64_t item, void *scratch)
{
    const struct call *c = argument;
    const int64_t group = c->model->heads / c->model->kv_heads, g = item % c->model->kv_heads;
    const int64_t first = c->block[item / c->model->kv_heads], last = c->block[item / c->model->kv_heads + 1];
    int64_t token[4], head[4];
    int count = 0;
    for (int64_t t = first; t < last; t++)
        for (int64_t h = 0; h < group; h++) {
            token[count] = t, head[count++] = g * group + h;
            if (count < 4 && (t < last - 1 || h < group - 1)) continue;
            attend_to_few(c, token, head, count, g, scratch);
            count = 0;
        }
}

/* Cut the chunk's tokens into blocks of one text each. */
static void find_blocks(struct call *c)
{
    c->blocks = 0, c->longest = 0;
    for (int64_t t = 0; t < c->n; t++) {
        if (t == 0 || c->row[t] != c->row[t - 1] || t - c->block[c->blocks - 1] == BLOCK) c->block[c->blocks++] = t;
        if (c->position[t] >= c->longest) c->longest = rounded_up(c->position[t] + 1, SIDE);
    }
    c->block[c->blocks] = c->n;
}

/* ---------------------------------------------------------------------------------------------- one chunk of tokens */
#define FEW (1 << 14) /* values, or products of an item of attention: a few microseconds, not worth waking a thread for */

struct preparing_call {
    const struct path *path;
    const struct preparing *job;
};

static void prepare_one(void *argument, int64_t row, void *scratch)
{
    const struct preparing_call *call = argument;
    call->path->prepare(call->job, row, scratch);
}

/* y (n, out) = matrix * rows, which are made from x (n, in) as struct preparing says. */
static int prepare_and_multiply(struct call *c, const struct matrix *matrix, int64_t n, float *x, const float *residual,
                                const float *gate_up, const float *norm, float *y)
{
    const int64_t in = matrix->in, group = matrix->format == INT8 ? INT8_GROUP : matrix->format == INT4 ? INT4_GROUP : 0;
    const int64_t stride = row_floats(in);
    const struct rows rows = {x, 0, n, in, norm, norm ? c->inverse : NULL, (float)c->model->eps, c->codes, c->step};
    const struct preparing job = {
        residual, gate_up, c->model->relu2, matrix->int8_inputs, matrix->format == TERNARY ? NULL : c->values, stride, group, c->fine_step, rows};
    struct preparing_call call = {c->path, &job};
    int status = run(prepare_one, &call, n, n * in < FEW ? 1 : c->threads, (size_t)in * sizeof(float));
    if (status != OK) return status;

    if (matrix->format == TERNARY) {
        struct product product = {c->path, matrix->data, matrix->out, in, c->codes, n, NULL, y, c->step, matrix->scale, 0, 0};
        return run_product(&product, c->threads);
    }
    const int64_t tiles = blocks_of(matrix->out, SIDE);
    const int threads = n * matrix->out * in < FEW * 16 ? 1 : c->threads;
    struct dense_product product = {c->path, matrix, c->values, c->fine_step, stride, n, y, smaller(tiles, (int64_t)threads * ITEMS_PER_THREAD)};
    return run(dense_multiply, &product, product.parts, threads, 0);
}

/* Keep only the tokens whose logits are wanted: the last layer has nothing to do for the others once it has stored their keys. */
static void keep_wanted(struct call *c, int64_t first, const int64_t *want, int64_t wanted)
{
    const int64_t width = c->model->width, qkv = (c->model->heads + 2 * c->model->kv_heads) * c->model->head_dim;
    for (int64_t i = 0; i < wanted; i++) {
        const int64_t t = want[i] - first; /* at or after i: nothing is overwritten that is still needed */
        c->row[i] = c->row[t], c->position[i] = c->position[t];
        memmove(c->x + i * width, c->x + t * width, (size_t)width * sizeof(float));
        memmove(c->qkv + i * qkv, c->qkv + t * qkv, (size_t)qkv * sizeof(float));
    }
    c->n = wanted;
}

static int attention(struct call *c, int64_t first, const int64_t *want, int64_t wanted)
{
    const struct model *m = c->model;
    const struct layer *layer = &m->layer[c->layer];
    const int64_t d = m->head_dim;
    int status = prepare_and_multiply(c, &layer->qkv, c->n, c->x, c->layer ? c->y : NULL, NULL, layer->attn_norm, c->qkv);
    if (status != OK) return status;

    status = run(store, c, c->n, c->n * layer->qkv.out < FEW ? 1 : c->threads, 0);
    if (status != OK) return status;
    if (c->layer == m->layers - 1) keep_wanted(c, first, want, wanted);
    if (c->n == 0) return OK;

    find_blocks(c);
    const int threads = c->n * c->longest * m->heads * d < FEW * 4 ? 1 : c->threads;
    status = run(attend, c, c->blocks * m->kv_heads, threads, (size_t)(4 * (d + c->longest)) * sizeof(float));
    if (status != OK) return status;
    return prepare_and_multiply(c, &layer->attn_out, c->n, c->mixed, NULL, NULL, layer->attn_sub_norm, c->y);
}

static int feedforward(struct call *c)
{
    const struct layer *layer = &c->model->layer[c->layer];
    int status = prepare_and_multiply(c, &layer->gate_up, c->n, c->x, c->y, NULL, layer->ffn_norm, c->gate_up);
    if (status != OK) return status;
    return prepare_and_multiply(c, &layer->down, c->n, c->mixed, NULL, c->gate_up, layer->ffn_sub_norm, c->y);
}

/* `want`: those of the wanted tokens that are in this chunk. */
static int forward_chunk(struct call *c, int64_t first, const int64_t *want, int64_t wanted, float *logits)
{
    const struct model *m = c->model;
    for (int64_t t = 0; t < c->n; t++) {
        c->row[t] = c->batch->row[first + t], c->position[t] = c->batch->position[first + t];
        dense_row(&m->embeddings, c->batch->ids[first + t], c->x + t * m->width);
    }
    for (c->layer = 0; c->layer < m->layers; c->layer++) {
        int status = attention(c, first, want, wanted);
        if (status == OK && c->n > 0) status = feedforward(c);
        if (status != OK) return status;
    }
    return wanted ? prepare_and_multiply(c, &m->head, wanted, c->x, c->y, NULL, m->final_norm, logits) : OK;
}

/* ---------------------------------------------------------------------------------------------- exported functions */
static size_t carve(char **room, int64_t bytes)
{
    size_t size = (size_t)rounded_up(bytes, 64);
    if (*room) *room += size;
    return size;
}

/* Lay the buffers of a call for up to `n` tokens into a workspace. Returns its size; with a workspace of NULL only that. */
static size_t lay_out(const struct model *m, int64_t n, struct call *c, char *workspace)
{
    const int64_t wide = m->inner > m->width ? m->inner : m->width;
    char *room = workspace;
    size_t size = 0;
#define LAY(FIELD, BYTES) c->FIELD = (void *)room, size += carve(&room, (BYTES))
    LAY(x, n * m->width * 4);
    LAY(y, n * m->width * 4);
    LAY(qkv, n * (m->heads + 2 * m->kv_heads) * m->head_dim * 4);
    LAY(gate_up, n * 2 * m->inner * 4);
    LAY(mixed, n * wide * 4);
    LAY(values, n * row_floats(wide) * 4);
    LAY(codes, n * wide);
    LAY(step, n * 4);
    LAY(fine_step, n * 4);
    LAY(inverse, n * 4);
#undef LAY
    return size;
}

/* Bytes of the workspace that decoder_forward needs for a batch of this many tokens. */
EXPORT int64_t decoder_workspace(const struct model *model, int64_t tokens)
{
    struct call call;
    return (int64_t)lay_out(model, smaller(tokens, CHUNK), &call, NULL);
}

/* Floats of one text's cache with room for `capacity` positions, a multiple of 16. */
EXPORT int64_t decoder_cache_floats(const struct model *model, int64_t capacity)
{
    return model->layers * model->kv_heads * head_floats(model, capacity);
}

static int fits(const struct model *m, const struct batch *b)
{
    for (int64_t t = 0; t < b->tokens; t++) {
        if (b->ids[t] < 0 || b->ids[t] >= m->vocab || b->row[t] < 0 || b->row[t] >= b->rows) return 0;
        if (b->position[t] < 0 || b->position[t] >= m->length || b->position[t] >= b->capacity[b->row[t]]) return 0;
    }
    for (int64_t i = 0; i < b->wanted; i++)
        if (b->want[i] < 0 || b->want[i] >= b->tokens || (i && b->want[i] <= b->want[i - 1])) return 0;
    return 1;
}

/* Read a batch. Ids, rows, positions and wanted tokens are checked here; sizes of buffers are the caller's to check. */
EXPORT int decoder_forward(int path, const struct model *model, const struct batch *batch, void *workspace, int threads)
{
    struct call call = {.path = usable(path), .model = model, .batch = batch, .threads = threads};
    if (!call.path) return NO_PATH;
    if (!fits(model, batch)) return INVALID_BATCH;
    lay_out(model, smaller(batch->tokens, CHUNK), &call, workspace);

    const int64_t *want = batch->want, *end = want + batch->wanted;
    float *logits = batch->logits;
    for (int64_t first = 0; first < batch->tokens; first += CHUNK) {
        const int64_t *next = want;
        call.n = smaller(CHUNK, batch->tokens - first);
        while (next < end && *next < first + call.n) next++;
        int status = forward_chunk(&call, first, want, next - want, logits);
        if (status != OK) return status;
        logits += (next - want) * model->vocab, want = next;
    }
    return OK;
}
#endif /* IN_PART(1) */

/* ============================================================================================== TRAINING PASSES
 *
 * What training computes beside its products, each in one pass over rows of float32 or bfloat16: gradients scaled and quantised,
 * RMSNorm's gradient, the feed-forward gate and its gradient, rotary positions there and back, softmax cross-entropy with its
 * gradient, and latent weights to packed tiles of both orientations. Rows of bfloat16 are widened, computed in float32 and rounded
 * once. Sums over rows are taken in parts that depend on the number of rows only, and the parts are added in order.
 *
 * Vector code is in the row functions, which are compiled once per instruction set; the rest is common. */
#define SUM_BLOCK 1024 /* exponentials that are added in float32 before their sum is added in float64 */

/* Also with a factor of 1: a copy. */
INLINE void scale_row(const float *restrict x, float factor, int64_t count, float *restrict out)
{
    for (int64_t i = 0; i < count; i++) out[i] = x[i] * factor;
}

INLINE void narrow_row(const float *restrict x, float factor, int64_t count, uint16_t *restrict out)
{
    for (int64_t i = 0; i < count; i++) {
        float value = x[i] * factor;
        uint32_t bits = (uint32_t)bits_of(value), rounded = bits + 0x7FFF + (bits >> 16 & 1);
        out[i] = (uint16_t)(((bits & 0x7FFFFFFF) > 0x7F800000 ? bits | 0x400000 : rounded) >> 16); /* a NaN stays one */
    }
}

INLINE void widen_row(const uint16_t *restrict x, int64_t count, float *restrict out)
{
    for (int64_t i = 0; i < count; i++) out[i] = float_of((uint32_t)x[i] << 16);
}

/* The sum of a row, as sixteen sums in turn: any width of vectors adds them alike. */
INLINE float sum_of_row(const float *x, int64_t count)
{
    float part[16] = {0};
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (int lane = 0; lane < 16; lane++) part[lane] += x[i + lane];
    for (; i < count; i++) part[i % 16] += x[i];
    for (int half = 8; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) part[lane] += part[lane + half];
    return part[0];
}

/* One row of the gradient of RMSNorm; `weight_sum` has the row's part of the weight's gradient added. */
INLINE void norm_gradient_row(const float *restrict grad, const float *restrict x, const float *restrict weight, float inverse, int64_t in,
                              float *restrict grad_x, float *restrict weight_sum)
{
    for (int64_t i = 0; i < in; i++) {
        float product = grad[i] * (x[i] * inverse);
        weight_sum[i] += product;
        grad_x[i] = product * weight[i];
    }
    const float projection = sum_of_row(grad_x, in) / (float)in;
    for (int64_t i = 0; i < in; i++) grad_x[i] = (grad[i] * weight[i] - x[i] * inverse * projection) * inverse;
}

/* d silu(g) = s * (1 + g * (1 - s)) with s = sigmoid(g); d relu(g)^2 = 2 relu(g). */
INLINE void gate_gradient_row(const float *restrict grad, const float *restrict gate, const float *restrict up, int64_t in, int relu2,
                              float *restrict grad_gate, float *restrict grad_up)
{
    if (relu2)
        for (int64_t i = 0; i < in; i++) {
            float positive = gate[i] < 0 ? 0 : gate[i];
            grad_gate[i] = grad[i] * up[i] * (2.0f * positive);
            grad_up[i] = grad[i] * (positive * positive);
        }
    else
        for (int64_t i = 0; i < in; i++) {
            float sigmoid = 1.0f / (1.0f + exp_of(-gate[i]));
            grad_gate[i] = grad[i] * up[i] * (sigmoid * (1.0f + gate[i] * (1.0f - sigmoid)));
            grad_up[i] = grad[i] * (gate[i] * sigmoid);
        }
}

/* One head by the angles of a position, in the rotate-half layout of bitnet.nn.rotary; sign: -1 turns back. */
INLINE void turn_row(const float *restrict x, const float *restrict cosine, const float *restrict sine, float sign, int64_t half, float *restrict out)
{
    for (int64_t i = 0; i < half; i++) {
        float s = sine[i] * sign;
        out[i] = x[i] * cosine[i] - x[half + i] * s;
        out[half + i] = x[half + i] * cosine[i] + x[i] * s;
    }
}

/* Logits become weight * (softmax - one-hot). Returns the loss, without the weight. A NaN or +infinity makes all of it NaN. */
INLINE float cross_entropy_row(float *restrict logits, int64_t count, int64_t target, float weight)
{
    const float chosen = logits[target];
    float top[16];
    for (int lane = 0; lane < 16; lane++) top[lane] = logits[0];
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (int lane = 0; lane < 16; lane++) top[lane] = logits[i + lane] > top[lane] ? logits[i + lane] : top[lane];
    for (; i < count; i++) top[0] = logits[i] > top[0] ? logits[i] : top[0];
    for (int lane = 1; lane < 16; lane++) top[0] = top[lane] > top[0] ? top[lane] : top[0];

    const float largest = top[0];
    double total = 0;
    for (i = 0; i < count; i++) logits[i] = exp_of(logits[i] - largest);
    for (i = 0; i < count; i += SUM_BLOCK) total += sum_of_row(logits + i, smaller(SUM_BLOCK, count - i));

    const float factor = weight / (float)total;
    for (i = 0; i < count; i++) logits[i] *= factor;
    logits[target] -= weight;
    return (float)(log(total) - ((double)chosen - largest));
}

/* Sum of magnitudes: in float64, so that the mean is the float32 nearest to the exact one but for rare ties. */
INLINE double magnitude_row(const float *restrict x, int64_t count)
{
    double part[16] = {0}, total = 0;
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (int lane = 0; lane < 16; lane++) part[lane] += fabsf(x[i + lane]);
    for (; i < count; i++) part[i % 16] += fabsf(x[i]);
    for (int lane = 0; lane < 16; lane++) total += part[lane];
    return total;
}

/* 16 x 16 latent weights, `stride` apart, to a tile of the matrix and a tile of its transpose. limit: half the scale of each row.
 * round(w / scale) is 1 exactly where w > scale / 2 in float32, since half-way goes to 0 and no quotient between rounds to it. */
INLINE void pack_both_ways(const float *restrict w, int64_t stride, const float *restrict limit, uint8_t *restrict tile, uint8_t *restrict turned)
{
    uint32_t lanes[SIDE] = {0};
    uint8_t codes[SIDE][SIDE];
    for (int r = 0; r < SIDE; r++) {
        const float most = limit[r], *row = w + r * stride;
        for (int i = 0; i < SIDE; i++) {
            uint32_t code = 1u + (uint32_t)(row[i] > most) - (uint32_t)(row[i] < -most);
            lanes[i] |= code << (r % 4 * 8 + r / 4 * 2);
            codes[r][i] = (uint8_t)code;
        }
    }
    memcpy(turned, lanes, TILE);
    for (int r = 0; r < SIDE; r++) {
        uint32_t word[4];
        memcpy(word, codes[r], sizeof word);
        lanes[r] = word[0] | word[1] << 2 | word[2] << 4 | word[3] << 6;
    }
    memcpy(tile, lanes, TILE);
}

struct row_functions {
    void (*scale)(const float *x, float factor, int64_t count, float *out);
    void (*narrow)(const float *x, float factor, int64_t count, uint16_t *out);
    void (*widen)(const uint16_t *x, int64_t count, float *out);
    void (*norm_gradient)(const float *grad, const float *x, const float *weight, float inverse, int64_t in, float *grad_x, float *weight_sum);
    void (*gate_gradient)(const float *grad, const float *gate, const float *up, int64_t in, int relu2, float *grad_gate, float *grad_up);
    void (*turn)(const float *x, const float *cosine, const float *sine, float sign, int64_t half, float *out);
    float (*cross_entropy)(float *logits, int64_t count, int64_t target, float weight);
    double (*magnitude)(const float *x, int64_t count);
    void (*pack)(const float *w, int64_t stride, const float *limit, uint8_t *tile, uint8_t *turned);
};

#define ROW_FUNCTIONS(NAME, TARGET) \
    TARGET static void scale_##NAME(const float *x, float f, int64_t n, float *out) { scale_row(x, f, n, out); } \
    TARGET static void narrow_##NAME(const float *x, float f, int64_t n, uint16_t *out) { narrow_row(x, f, n, out); } \
    TARGET static void widen_##NAME(const uint16_t *x, int64_t n, float *out) { widen_row(x, n, out); } \
    TARGET static void norm_gradient_##NAME(const float *g, const float *x, const float *w, float r, int64_t n, float *out, float *sum) \
    { \
        norm_gradient_row(g, x, w, r, n, out, sum); \
    } \
    TARGET static void gate_gradient_##NAME(const float *g, const float *gate, const float *up, int64_t n, int relu2, float *dg, float *du) \
    { \
        gate_gradient_row(g, gate, up, n, relu2, dg, du); \
    } \
    TARGET static void turn_##NAME(const float *x, const float *c, const float *s, float sign, int64_t half, float *out) \
    { \
        turn_row(x, c, s, sign, half, out); \
    } \
    TARGET static float cross_entropy_##NAME(float *x, int64_t n, int64_t target, float w) { return cross_entropy_row(x, n, target, w); } \
    TARGET static double magnitude_##NAME(const float *x, int64_t n) { return magnitude_row(x, n); } \
    TARGET static void pack_##NAME(const float *w, int64_t stride, const float *limit, uint8_t *tile, uint8_t *turned) \
    { \
        pack_both_ways(w, stride, limit, tile, turned); \
    } \
    SHARED const struct row_functions rows_##NAME = { \
        scale_##NAME, narrow_##NAME, widen_##NAME, norm_gradient_##NAME, gate_gradient_##NAME, turn_##NAME, \
        cross_entropy_##NAME, magnitude_##NAME, pack_##NAME};
#if IN_PART(2)
ROW_FUNCTIONS(plain, )
#endif
#if IN_PART(3) && defined(__x86_64__)
ROW_FUNCTIONS(avx2, TARGET_AVX2)
#endif
#if IN_PART(4) && defined(HAVE_AVX512_VNNI)
ROW_FUNCTIONS(avx512, TARGET_AVX512)
#endif

#if IN_PART(1)
#if PART == 1
extern const struct row_functions rows_plain, rows_avx2, rows_avx512;
#endif

static const struct row_functions *functions_of(int path)
{
#if defined(HAVE_AVX512_VNNI)
    if (path == AVX512_VNNI) return &rows_avx512;
#endif
#if defined(__x86_64__)
    if (path == AVX2 || path == AVX_VNNI) return &rows_avx2;
#endif
    return &rows_plain;
}

struct floats { /* a tensor of float32, or of bfloat16 */
    void *data;
    int64_t bf16;
};

/* `count` values from `at` on: in place, or widened into room. */
static const float *read_floats(const struct row_functions *f, struct floats x, int64_t at, int64_t count, float *room)
{
    if (!x.bf16) return (const float *)x.data + at;
    f->widen((const uint16_t *)x.data + at, count, room);
    return room;
}

/* Where a row is to be computed: in place, or in room, from where write_back rounds it. */
static float *place_for(struct floats x, int64_t at, float *room) { return x.bf16 ? room : (float *)x.data + at; }
static void write_back(const struct row_functions *f, struct floats x, int64_t at, int64_t count, const float *room)
{
    if (x.bf16) f->narrow(room, 1.0f, count, (uint16_t *)x.data + at);
}

static int threads_for(int64_t values, int threads) { return values < (1 << 15) ? 1 : threads; }

/* ---------------------------------------------------------------------------------------------- gradients before products */
struct gradient { /* argument of training_gradient: see there */
    struct floats grad, gate_up, scaled;
    int64_t relu2, n, width;
    const float *row_scale, *factor;
    int8_t *codes;
    float *step;
};

struct gradient_call {
    const struct path *path;
    const struct row_functions *f;
    const struct gradient *job;
};

static void gradient_rows(void *argument, int64_t item, void *scratch)
{
    const struct gradient_call *call = argument;
    const struct gradient *job = call->job;
    const int64_t width = job->width, half = width / 2, end = smaller((item + 1) * ROWS_OF_AN_ITEM, job->n);
    float *work = scratch, *room = work + width, *spare = room + width;

    for (int64_t row = item * ROWS_OF_AN_ITEM; row < end; row++) {
        const float *values;
        if (job->gate_up.data) { /* then `grad` is that of the gated values */
            const float *grad = read_floats(call->f, job->grad, row * half, half, work);
            const float *gate_up = read_floats(call->f, job->gate_up, row * width, width, spare);
            call->f->gate_gradient(grad, gate_up, gate_up + half, half, (int)job->relu2, room, room + half);
            values = room;
        } else
            values = read_floats(call->f, job->grad, row * width, width, room);

        if (job->codes) {
            const struct rows one = {values, 0, 1, width, job->row_scale, NULL, 0, job->codes + row * width, job->step + row};
            call->path->quantize(&one, 0, work);
        }
        const float factor = job->factor ? job->factor[row] : 1.0f;
        if (!job->scaled.data) continue;
        if (job->scaled.bf16) call->f->narrow(values, factor, width, (uint16_t *)job->scaled.data + row * width);
        else call->f->scale(values, factor, width, (float *)job->scaled.data + row * width);
    }
}

/* Rows of a gradient, for both products of a layer's backward pass: codes and steps of grad * row_scale, and grad * factor.
 * grad: (n, width); row_scale: (width) or NULL; factor: (n) or NULL; codes (n, width) and step (n) written, or NULL;
 * scaled: (n, width) written, or its data NULL. With gate_up (n, width), the gradient is first taken back through the gate from
 * grad (n, width / 2), so that rows are [gate | up]. */
EXPORT int training_gradient(int path, const struct gradient *job, int threads)
{
    struct gradient_call call = {usable(path), functions_of(path), job};
    if (!call.path) return NO_PATH;
    threads = threads_for(job->n * job->width, threads);
    return run(gradient_rows, &call, blocks_of(job->n, ROWS_OF_AN_ITEM), threads, 3 * (size_t)job->width * sizeof(float));
}

/* ---------------------------------------------------------------------------------------------- the gate */
struct gating { /* argument of training_gate: see there */
    struct floats gate_up, out;
    int64_t relu2, n, inner;
    const float *norm;
    double eps;
    int8_t *codes;
    float *step, *inverse;
};

struct gating_call {
    const struct path *path;
    const struct row_functions *f;
    const struct gating *job;
};

static void gate_rows(void *argument, int64_t item, void *scratch)
{
    const struct gating_call *call = argument;
    const struct gating *job = call->job;
    const int64_t inner = job->inner, end = smaller((item + 1) * ROWS_OF_AN_ITEM, job->n);
    float *work = scratch, *room = work + inner, *spare = room + inner;

    for (int64_t row = item * ROWS_OF_AN_ITEM; row < end; row++) {
        const float *gate_up = read_floats(call->f, job->gate_up, row * 2 * inner, 2 * inner, spare);
        float *gated = job->out.data ? place_for(job->out, row * inner, room) : room;
        struct rows one = {.x = gated, .n = 1, .in = inner, .columns = job->norm, .eps = (float)job->eps};
        if (job->norm) one.inverse = job->inverse + row;
        if (job->codes) one.codes = job->codes + row * inner, one.step = job->step + row;
        const struct preparing preparing = {.gate_up = gate_up, .relu2 = job->relu2, .int8_inputs = job->codes != NULL, .rows = one};
        call->path->prepare(&preparing, 0, work);
        if (job->out.data) write_back(call->f, job->out, row * inner, inner, gated);
    }
}

/* activation(gate) * up: (n, 2 inner) to out (n, inner), or straight to codes (n, inner) and step (n), or to both; whichever is not
 * NULL. norm: (inner) the weight of an RMSNorm before the codes, or NULL; inverse: (n) written then. */
EXPORT int training_gate(int path, const struct gating *job, int threads)
{
    struct gating_call call = {usable(path), functions_of(path), job};
    if (!call.path) return NO_PATH;
    threads = threads_for(job->n * job->inner, threads);
    return run(gate_rows, &call, blocks_of(job->n, ROWS_OF_AN_ITEM), threads, 4 * (size_t)job->inner * sizeof(float));
}

/* ---------------------------------------------------------------------------------------------- RMSNorm's gradient */
struct norm_gradient { /* argument of training_norm: see there */
    struct floats grad, x, grad_x;
    int64_t n, in, parts;
    const float *inverse, *weight;
    float *sums, *grad_weight;
};

struct norm_call {
    const struct row_functions *f;
    const struct norm_gradient *job;
};

static void norm_rows(void *argument, int64_t item, void *scratch)
{
    const struct norm_call *call = argument;
    const struct norm_gradient *job = call->job;
    const int64_t in = job->in, end = job->n * (item + 1) / job->parts;
    float *room = scratch, *sums = job->sums + item * in;
    memset(sums, 0, (size_t)in * sizeof(float));

    for (int64_t row = job->n * item / job->parts; row < end; row++) {
        const float *grad = read_floats(call->f, job->grad, row * in, in, room), *x = read_floats(call->f, job->x, row * in, in, room + in);
        call->f->norm_gradient(grad, x, job->weight, job->inverse[row], in, place_for(job->grad_x, row * in, room + 2 * in), sums);
        write_back(call->f, job->grad_x, row * in, in, room + 2 * in);
    }
}

/* grad, x, grad_x: (n, in); inverse: (n) 1 / rms; weight, grad_weight: (in). sums: (parts, in) working memory. How many parts there
 * are decides the bits of grad_weight: the caller derives them from n alone. */
EXPORT int training_norm(int path, const struct norm_gradient *job, int threads)
{
    struct norm_call call = {functions_of(path), job};
    if (!usable(path)) return NO_PATH;
    int status = run(norm_rows, &call, job->parts, threads_for(job->n * job->in, threads), 3 * (size_t)job->in * sizeof(float));
    if (status != OK) return status;

    memset(job->grad_weight, 0, (size_t)job->in * sizeof(float));
    for (int64_t part = 0; part < job->parts; part++)
        for (int64_t i = 0; i < job->in; i++) job->grad_weight[i] += job->sums[part * job->in + i];
    return OK;
}

/* ---------------------------------------------------------------------------------------------- rotary positions */
struct heads { /* some heads of every token; strides in values, of which the last dimension's is 1 */
    void *data;
    int64_t count, text_stride, head_stride, token_stride;
};

struct rotary { /* argument of training_rotary: see there */
    struct floats rows;
    struct heads part[3];
    int64_t bf16, back, n, tokens, head_dim, table_stride;
    const float *cosine, *sine;
};

struct rotary_call {
    const struct row_functions *f;
    const struct rotary *job;
};

/* Token n of the heads of one part, which begin at `row` in its row of floats. */
static void turn_heads(const struct rotary_call *call, int64_t n, int turned, const struct heads *part, float *row, float *room)
{
    const struct rotary *job = call->job;
    const struct row_functions *f = call->f;
    const int64_t d = job->head_dim, token = n % job->tokens;
    const float *cosine = job->cosine + token * job->table_stride, *sine = job->sine + token * job->table_stride;

    for (int64_t h = 0; h < part->count; h++, row += d) {
        const int64_t at = n / job->tokens * part->text_stride + h * part->head_stride + token * part->token_stride;
        const struct floats head = {part->data, job->bf16};
        const float *from = job->back ? read_floats(f, head, at, d, room) : row;
        float *to = job->back ? row : place_for(head, at, room);
        if (turned) f->turn(from, cosine, sine, job->back ? -1.0f : 1.0f, d / 2, to);
        else f->scale(from, 1.0f, d, to);
        if (!job->back) write_back(f, head, at, d, room);
    }
}

static void rotary_rows(void *argument, int64_t item, void *scratch)
{
    const struct rotary_call *call = argument;
    const struct rotary *job = call->job;
    const int64_t d = job->head_dim, end = smaller((item + 1) * ROWS_OF_AN_ITEM, job->n);
    const int64_t width = (job->part[0].count + job->part[1].count + job->part[2].count) * d;
    float *room = scratch, *wide = room + d;

    for (int64_t n = item * ROWS_OF_AN_ITEM; n < end; n++) {
        float *row = job->back ? place_for(job->rows, n * width, wide) : (float *)read_floats(call->f, job->rows, n * width, width, wide), *at = row;
        for (int i = 0; i < 3; at += job->part[i].count * d, i++) turn_heads(call, n, i < 2, &job->part[i], at, room);
        if (job->back) write_back(call->f, job->rows, n * width, width, row);
    }
}

/* Rows of queries, keys and values (n, width) to heads of each in any layout, queries and keys turned by their position; with
 * `back`, gradients of the heads to gradients of the rows. n: texts * tokens. cosine, sine: (tokens, at least head_dim / 2), rows
 * `table_stride` apart. bf16: of the heads. */
EXPORT int training_rotary(int path, const struct rotary *job, int threads)
{
    struct rotary_call call = {functions_of(path), job};
    if (!usable(path)) return NO_PATH;
    const int64_t width = (job->part[0].count + job->part[1].count + job->part[2].count) * job->head_dim;
    return run(rotary_rows, &call, blocks_of(job->n, ROWS_OF_AN_ITEM), threads_for(job->n * width, threads),
               (size_t)(job->head_dim + width) * sizeof(float));
}

/* ---------------------------------------------------------------------------------------------- cross-entropy */
struct cross_entropy { /* argument of training_cross_entropy: see there */
    struct floats logits;
    int64_t n, vocab;
    const int64_t *target;
    const float *weight;
    float *loss;
};

struct cross_entropy_call {
    const struct row_functions *f;
    const struct cross_entropy *job;
};

static void cross_entropy_of(void *argument, int64_t row, void *scratch)
{
    const struct cross_entropy_call *call = argument;
    const struct cross_entropy *job = call->job;
    const int64_t vocab = job->vocab, bytes = job->logits.bf16 ? 2 : 4;
    const float weight = job->weight[row];
    if (weight == 0) {
        memset((char *)job->logits.data + row * vocab * bytes, 0, (size_t)(vocab * bytes));
        job->loss[row] = 0;
        return;
    }
    float *logits = (float *)read_floats(call->f, job->logits, row * vocab, vocab, scratch);
    job->loss[row] = weight * call->f->cross_entropy(logits, vocab, job->target[row], weight);
    write_back(call->f, job->logits, row * vocab, vocab, logits);
}

/* loss[n] = weight[n] * (log sum of exp(logits[n]) - logits[n][target[n]]), and over the logits (n, vocab) the gradient of the
 * losses' sum. Where a weight is 0 neither target nor logits count, whatever they are. A target outside of the vocabulary is
 * INVALID_BATCH, and nothing is written. */
EXPORT int training_cross_entropy(int path, const struct cross_entropy *job, int threads)
{
    struct cross_entropy_call call = {functions_of(path), job};
    if (!usable(path)) return NO_PATH;
    for (int64_t n = 0; n < job->n; n++)
        if (job->weight[n] != 0 && (job->target[n] < 0 || job->target[n] >= job->vocab)) return INVALID_BATCH;
    return run(cross_entropy_of, &call, job->n, threads_for(job->n * job->vocab, threads), (size_t)job->vocab * sizeof(float));
}

/* ---------------------------------------------------------------------------------------------- latent weights to tiles */
struct latent { /* argument of training_pack: see there */
    const float *weight;
    int64_t out, in, matrices;
    const int64_t *rows;
    int64_t scales_given;
    float *row_scale;
    double *sums;
    uint8_t *packed, *turned;
};

struct latent_call {
    const struct row_functions *f;
    const struct latent *job;
};

static void sum_magnitudes(void *argument, int64_t item, void *scratch)
{
    const struct latent_call *call = argument;
    const struct latent *job = call->job;
    (void)scratch;
    for (int64_t o = item * SIDE; o < smaller((item + 1) * SIDE, job->out); o++) job->sums[o] = call->f->magnitude(job->weight + o * job->in, job->in);
}

static void pack_tiles(void *argument, int64_t item, void *scratch)
{
    const struct latent_call *call = argument;
    const struct latent *job = call->job;
    const int64_t first = item * SIDE, rows = smaller(SIDE, job->out - first), k_tiles = blocks_of(job->in, SIDE), row_tiles = blocks_of(job->out, SIDE);
    float limit[SIDE] = {0}, edge[SIDE][SIDE];
    (void)scratch;
    for (int64_t r = 0; r < rows; r++) limit[r] = job->row_scale[first + r] / 2;

    for (int64_t k = 0; k < k_tiles; k++) {
        const float *w = job->weight + first * job->in + k * SIDE;
        const int64_t inputs = smaller(SIDE, job->in - k * SIDE);
        const int whole = rows == SIDE && inputs == SIDE;
        if (!whole) {
            memset(edge, 0, sizeof edge);
            for (int64_t r = 0; r < rows; r++) memcpy(edge[r], w + r * job->in, (size_t)inputs * sizeof(float));
        }
        call->f->pack(whole ? w : edge[0], whole ? job->in : SIDE, limit, job->packed + (item * k_tiles + k) * TILE,
                      job->turned + (k * row_tiles + item) * TILE);
    }
}

/* Latent weights (out, in) to tiles of the matrix (packed) and of its transpose (turned), by the rule of bitnet.nn.quantize: for each
 * of the logical matrices, which have rows[m] rows, a scale that is the mean magnitude, or EPSILON if that is more. row_scale: (out)
 * written; or, with scales_given, read. sums: (out) working memory. */
EXPORT int training_pack(int path, const struct latent *job, int threads)
{
    struct latent_call call = {functions_of(path), job};
    if (!usable(path)) return NO_PATH;
    threads = threads_for(job->out * job->in, threads);
    if (!job->scales_given) {
        int status = run(sum_magnitudes, &call, blocks_of(job->out, SIDE), threads, 0);
        if (status != OK) return status;
        const double *sum = job->sums;
        float *scale = job->row_scale;
        for (int64_t m = 0; m < job->matrices; m++) {
            double total = 0;
            for (int64_t r = 0; r < job->rows[m]; r++) total += *sum++;
            float mean = (float)(total / ((double)job->rows[m] * (double)job->in));
            for (int64_t r = 0; r < job->rows[m]; r++) *scale++ = mean < EPSILON ? EPSILON : mean; /* a NaN stays one */
        }
    }
    return run(pack_tiles, &call, blocks_of(job->out, SIDE), threads, 0);
}
#endif /* IN_PART(1) */

#else
/* ---------------------------------------------------------------------------------------------- dense tiles, for LANES lanes
 *
 * Included above once for each width of vectors. Products and sums are rounded one by one, as everywhere in this file. */
#define JOINED(A, B) A##_##B
#define JOIN(A, B) JOINED(A, B)
#define NAME(A) JOIN(A, SUFFIX)
#define PIECES (SIDE / LANES)
#define WHOLE(TYPE, BYTES) __attribute__((vector_size((BYTES) * LANES), aligned(BYTES), may_alias)) TYPE

typedef WHOLE(float, 4) NAME(floats);
typedef WHOLE(uint32_t, 4) NAME(words);
typedef WHOLE(int32_t, 4) NAME(ints);
typedef WHOLE(uint16_t, 2) NAME(halves);

#define floats NAME(floats)
#define words NAME(words)
#define ints NAME(ints)
#define halves NAME(halves)

TARGET_TILES INLINE void NAME(zero)(floats acc[4][PIECES], const int width)
{
    UNROLL for (int n = 0; n < width; n++)
        UNROLL for (int p = 0; p < PIECES; p++) acc[n][p] = (floats){0};
}

TARGET_TILES INLINE void NAME(put)(floats acc[4][PIECES], float *y, const int width)
{
    UNROLL for (int n = 0; n < width; n++)
        UNROLL for (int p = 0; p < PIECES; p++) *(floats *)(y + n * SIDE + p * LANES) = acc[n][p];
}

TARGET_TILES INLINE void NAME(float32_body)(const float *w, int64_t in, const float *x, int64_t stride, float *y, const int width)
{
    floats acc[4][PIECES];
    NAME(zero)(acc, width);
    for (int64_t i = 0; i < in; i++, w += SIDE)
        UNROLL for (int p = 0; p < PIECES; p++) {
            floats weights = *(const floats *)(w + p * LANES);
            UNROLL for (int n = 0; n < width; n++) acc[n][p] += weights * x[n * stride + i];
        }
    NAME(put)(acc, y, width);
}

TARGET_TILES INLINE void NAME(bfloat16_body)(const uint16_t *w, int64_t in, const float *x, int64_t stride, float *y, const int width)
{
    floats acc[4][PIECES];
    NAME(zero)(acc, width);
    for (int64_t i = 0; i < in; i++, w += SIDE)
        UNROLL for (int p = 0; p < PIECES; p++) {
            words bits = __builtin_convertvector(*(const halves *)(w + p * LANES), words) << 16;
            floats weights = (floats)bits;
            UNROLL for (int n = 0; n < width; n++) acc[n][p] += weights * x[n * stride + i];
        }
    NAME(put)(acc, y, width);
}

#if !defined(FLOAT_TILES_ONLY)
TARGET_TILES INLINE void NAME(int8_body)(const uint8_t *w, int64_t in, const float *x, int64_t stride, float *y, const int width)
{
    floats acc[4][PIECES];
    NAME(zero)(acc, width);
    for (int64_t first = 0; first < in; first += INT8_GROUP) {
        ints part[4][PIECES];
        UNROLL for (int n = 0; n < 4 * PIECES; n++) part[n / PIECES][n % PIECES] = (ints){0};
        for (int64_t i = first; i < smaller(in, first + INT8_GROUP); i += 4, w += TILE)
            UNROLL for (int p = 0; p < PIECES; p++) {
                ints bytes = *(const ints *)(w + 4 * p * LANES);
                UNROLL for (int b = 0; b < 4; b++)
                    UNROLL for (int n = 0; n < width; n++)
                        part[n][p] += ((bytes >> 8 * b & 255) - 128) * ((const int16_t *)(x + n * stride))[i + b];
            }
        UNROLL for (int n = 0; n < width; n++)
            UNROLL for (int p = 0; p < PIECES; p++) acc[n][p] += __builtin_convertvector(part[n][p], floats);
    }
    NAME(put)(acc, y, width);
}

TARGET_TILES INLINE void NAME(int4_body)(const uint8_t *w, const uint16_t *scale, int64_t in, const float *x, int64_t stride, float *y,
                                         const int width)
{
    floats acc[4][PIECES];
    NAME(zero)(acc, width);
    for (int64_t first = 0; first < in; first += INT4_GROUP, scale += SIDE) {
        ints part[4][PIECES];
        UNROLL for (int n = 0; n < 4 * PIECES; n++) part[n / PIECES][n % PIECES] = (ints){0};
        for (int64_t i = first; i < first + INT4_GROUP; i += 8, w += TILE)
            UNROLL for (int p = 0; p < PIECES; p++) {
                ints bytes = *(const ints *)(w + 4 * p * LANES);
                UNROLL for (int b = 0; b < 8; b++)
                    UNROLL for (int n = 0; n < width; n++)
                        part[n][p] += ((bytes >> (b % 4 * 8 + b / 4 * 4) & 15) - 8) * ((const int16_t *)(x + n * stride))[i + b];
            }
        UNROLL for (int p = 0; p < PIECES; p++) {
            words bits = __builtin_convertvector(*(const halves *)(scale + p * LANES), words) << 16;
            UNROLL for (int n = 0; n < width; n++) acc[n][p] += __builtin_convertvector(part[n][p], floats) * (floats)bits;
        }
    }
    NAME(put)(acc, y, width);
}

#define INTEGER_KERNELS(WIDTH) \
    TARGET_TILES static void JOIN(NAME(int8), WIDTH)(const void *w, const uint16_t *scale, int64_t in, const float *x, int64_t stride, float *y) \
    { \
        (void)scale, NAME(int8_body)(w, in, x, stride, y, WIDTH); \
    } \
    TARGET_TILES static void JOIN(NAME(int4), WIDTH)(const void *w, const uint16_t *scale, int64_t in, const float *x, int64_t stride, float *y) \
    { \
        NAME(int4_body)(w, scale, in, x, stride, y, WIDTH); \
    }
INTEGER_KERNELS(1)
INTEGER_KERNELS(4)
#endif

#define FLOAT_KERNELS(WIDTH) \
    TARGET_TILES static void JOIN(NAME(float32), WIDTH)(const void *w, const uint16_t *scale, int64_t in, const float *x, int64_t stride, float *y) \
    { \
        (void)scale, NAME(float32_body)(w, in, x, stride, y, WIDTH); \
    }
#define BFLOAT_KERNELS(WIDTH) \
    TARGET_TILES static void JOIN(NAME(bfloat16), WIDTH)(const void *w, const uint16_t *scale, int64_t in, const float *x, int64_t stride, float *y) \
    { \
        (void)scale, NAME(bfloat16_body)(w, in, x, stride, y, WIDTH); \
    }
FLOAT_KERNELS(1)
FLOAT_KERNELS(2)
FLOAT_KERNELS(4)
BFLOAT_KERNELS(1)
BFLOAT_KERNELS(4)

#undef floats
#undef words
#undef ints
#undef halves
#undef WHOLE
#undef PIECES
#undef INTEGER_KERNELS
#undef FLOAT_KERNELS
#undef BFLOAT_KERNELS
#undef FLOAT_TILES_ONLY
#undef NAME
#undef JOIN
#undef JOINED
#undef LANES
#undef SUFFIX
#undef TARGET_TILES
#endif
