"""Language codes of multilingual releases, in the order of their rows in the embedding table.

Source: the ``--langs`` of fairseq's examples/mbart (cc25), ML50_langs.txt of examples/multilingual (mBART-50), and the
FLORES-200 codes of NLLB-200 in the order of fairseq's examples/nllb, which SONAR shares.
"""

from collections.abc import Collection

MBART_CC25 = (
    "ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN",
    "it_IT", "ja_XX", "kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO",
    "ru_RU", "si_LK", "tr_TR", "vi_VN", "zh_CN",
)  # fmt: skip
MBART_50 = (
    *MBART_CC25,
    "af_ZA", "az_AZ", "bn_IN", "fa_IR", "he_IL", "hr_HR", "id_ID", "ka_GE", "km_KH", "mk_MK",
    "ml_IN", "mn_MN", "mr_IN", "pl_PL", "ps_AF", "pt_XX", "sv_SE", "sw_KE", "ta_IN", "te_IN",
    "th_TH", "tl_XX", "uk_UA", "ur_PK", "xh_ZA", "gl_ES", "sl_SI",
)  # fmt: skip
NLLB_200 = (
    "ace_Arab", "ace_Latn", "acm_Arab", "acq_Arab", "aeb_Arab", "afr_Latn", "ajp_Arab", "aka_Latn", "amh_Ethi",
    "apc_Arab", "arb_Arab", "ars_Arab", "ary_Arab", "arz_Arab", "asm_Beng", "ast_Latn", "awa_Deva", "ayr_Latn",
    "azb_Arab", "azj_Latn", "bak_Cyrl", "bam_Latn", "ban_Latn", "bel_Cyrl", "bem_Latn", "ben_Beng", "bho_Deva",
    "bjn_Arab", "bjn_Latn", "bod_Tibt", "bos_Latn", "bug_Latn", "bul_Cyrl", "cat_Latn", "ceb_Latn", "ces_Latn",
    "cjk_Latn", "ckb_Arab", "crh_Latn", "cym_Latn", "dan_Latn", "deu_Latn", "dik_Latn", "dyu_Latn", "dzo_Tibt",
    "ell_Grek", "eng_Latn", "epo_Latn", "est_Latn", "eus_Latn", "ewe_Latn", "fao_Latn", "pes_Arab", "fij_Latn",
    "fin_Latn", "fon_Latn", "fra_Latn", "fur_Latn", "fuv_Latn", "gla_Latn", "gle_Latn", "glg_Latn", "grn_Latn",
    "guj_Gujr", "hat_Latn", "hau_Latn", "heb_Hebr", "hin_Deva", "hne_Deva", "hrv_Latn", "hun_Latn", "hye_Armn",
    "ibo_Latn", "ilo_Latn", "ind_Latn", "isl_Latn", "ita_Latn", "jav_Latn", "jpn_Jpan", "kab_Latn", "kac_Latn",
    "kam_Latn", "kan_Knda", "kas_Arab", "kas_Deva", "kat_Geor", "knc_Arab", "knc_Latn", "kaz_Cyrl", "kbp_Latn",
    "kea_Latn", "khm_Khmr", "kik_Latn", "kin_Latn", "kir_Cyrl", "kmb_Latn", "kon_Latn", "kor_Hang", "kmr_Latn",
    "lao_Laoo", "lvs_Latn", "lij_Latn", "lim_Latn", "lin_Latn", "lit_Latn", "lmo_Latn", "ltg_Latn", "ltz_Latn",
    "lua_Latn", "lug_Latn", "luo_Latn", "lus_Latn", "mag_Deva", "mai_Deva", "mal_Mlym", "mar_Deva", "min_Latn",
    "mkd_Cyrl", "plt_Latn", "mlt_Latn", "mni_Beng", "khk_Cyrl", "mos_Latn", "mri_Latn", "zsm_Latn", "mya_Mymr",
    "nld_Latn", "nno_Latn", "nob_Latn", "npi_Deva", "nso_Latn", "nus_Latn", "nya_Latn", "oci_Latn", "gaz_Latn",
    "ory_Orya", "pag_Latn", "pan_Guru", "pap_Latn", "pol_Latn", "por_Latn", "prs_Arab", "pbt_Arab", "quy_Latn",
    "ron_Latn", "run_Latn", "rus_Cyrl", "sag_Latn", "san_Deva", "sat_Beng", "scn_Latn", "shn_Mymr", "sin_Sinh",
    "slk_Latn", "slv_Latn", "smo_Latn", "sna_Latn", "snd_Arab", "som_Latn", "sot_Latn", "spa_Latn", "als_Latn",
    "srd_Latn", "srp_Cyrl", "ssw_Latn", "sun_Latn", "swe_Latn", "swh_Latn", "szl_Latn", "tam_Taml", "tat_Cyrl",
    "tel_Telu", "tgk_Cyrl", "tgl_Latn", "tha_Thai", "tir_Ethi", "taq_Latn", "taq_Tfng", "tpi_Latn", "tsn_Latn",
    "tso_Latn", "tuk_Latn", "tum_Latn", "tur_Latn", "twi_Latn", "tzm_Tfng", "uig_Arab", "ukr_Cyrl", "umb_Latn",
    "urd_Arab", "uzn_Latn", "vec_Latn", "vie_Latn", "war_Latn", "wol_Latn", "xho_Latn", "ydd_Hebr", "yor_Latn",
    "yue_Hant", "zho_Hans", "zho_Hant", "zul_Latn",
)  # fmt: skip
# what people write (ISO 639-1, macrolanguages, library codes) -> the code of NLLB-200 that they mean
LIKELY_CODES = {
    "en": "eng_Latn", "de": "deu_Latn", "fr": "fra_Latn", "es": "spa_Latn", "zh": "zho_Hans", "pt": "por_Latn",
    "it": "ita_Latn", "nl": "nld_Latn", "ru": "rus_Cyrl", "ar": "arb_Arab", "ja": "jpn_Jpan", "ko": "kor_Hang",
    "hi": "hin_Deva", "bn": "ben_Beng", "ur": "urd_Arab", "fa": "pes_Arab", "tr": "tur_Latn", "pl": "pol_Latn",
    "uk": "ukr_Cyrl", "cs": "ces_Latn", "sk": "slk_Latn", "sl": "slv_Latn", "hr": "hrv_Latn", "sr": "srp_Cyrl",
    "bs": "bos_Latn", "bg": "bul_Cyrl", "mk": "mkd_Cyrl", "ro": "ron_Latn", "hu": "hun_Latn", "el": "ell_Grek",
    "he": "heb_Hebr", "sv": "swe_Latn", "no": "nob_Latn", "nb": "nob_Latn", "nn": "nno_Latn", "da": "dan_Latn",
    "fi": "fin_Latn", "et": "est_Latn", "lv": "lvs_Latn", "lt": "lit_Latn", "is": "isl_Latn", "ga": "gle_Latn",
    "cy": "cym_Latn", "mt": "mlt_Latn", "sq": "als_Latn", "ca": "cat_Latn", "eu": "eus_Latn", "gl": "glg_Latn",
    "vi": "vie_Latn", "th": "tha_Thai", "id": "ind_Latn", "ms": "zsm_Latn", "tl": "tgl_Latn", "sw": "swh_Latn",
    "am": "amh_Ethi", "so": "som_Latn", "ha": "hau_Latn", "yo": "yor_Latn", "ig": "ibo_Latn", "zu": "zul_Latn",
    "xh": "xho_Latn", "af": "afr_Latn", "ta": "tam_Taml", "te": "tel_Telu", "ml": "mal_Mlym", "kn": "kan_Knda",
    "mr": "mar_Deva", "gu": "guj_Gujr", "pa": "pan_Guru", "ne": "npi_Deva", "si": "sin_Sinh", "km": "khm_Khmr",
    "lo": "lao_Laoo", "my": "mya_Mymr", "mn": "khk_Cyrl", "ka": "kat_Geor", "hy": "hye_Armn", "az": "azj_Latn",
    "kk": "kaz_Cyrl", "uz": "uzn_Latn", "ky": "kir_Cyrl", "tg": "tgk_Cyrl", "ps": "pbt_Arab", "ku": "kmr_Latn",
    "zho": "zho_Hans", "chi": "zho_Hans", "ara": "arb_Arab", "fas": "pes_Arab", "per": "pes_Arab", "swa": "swh_Latn",
    "msa": "zsm_Latn", "may": "zsm_Latn", "nor": "nob_Latn", "ger": "deu_Latn", "fre": "fra_Latn", "dut": "nld_Latn",
    "gre": "ell_Grek", "rum": "ron_Latn", "cze": "ces_Latn", "slo": "slk_Latn", "alb": "als_Latn", "sqi": "als_Latn",
    "arm": "hye_Armn", "geo": "kat_Geor", "ice": "isl_Latn", "mac": "mkd_Cyrl", "wel": "cym_Latn", "baq": "eus_Latn",
    "bur": "mya_Mymr", "lav": "lvs_Latn", "est": "est_Latn", "aze": "azj_Latn", "uzb": "uzn_Latn", "mon": "khk_Cyrl",
    "nep": "npi_Deva", "ori": "ory_Orya", "pus": "pbt_Arab", "kur": "kmr_Latn", "mlg": "plt_Latn", "orm": "gaz_Latn",
    "yid": "ydd_Hebr", "srd": "srd_Latn",
}  # fmt: skip


def code_of_family(language: str, codes: Collection[str]) -> str | None:
    """What a model's vocabulary calls a language that a manifest writes in its own way, where only one can be meant.

    "en" is en_XX of mBART, eng_Latn of NLLB and SONAR, en of M2M-100. None: no such language, or several of them: NLLB
    writes Chinese in two scripts.

    Args:
        codes: of the vocabulary.
    """
    if language in codes:
        return language
    begin = language.replace("-", "_").split("_")[0].lower()
    likely = LIKELY_CODES.get(begin)
    bases = {begin} if likely is None else {begin, likely.split("_")[0]}
    found = [code for code in codes if code.split("_")[0] in bases]
    return found[0] if len(found) == 1 and language.lower() == begin else None
