"""Fine-tuning data: topics to prompts to answers in a voice, written by a teacher."""
