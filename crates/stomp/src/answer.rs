//! What is owed to the client: one answer for each token, given in order.

use std::collections::VecDeque;

use bytes::{Buf, BytesMut};
use kahawai_message::front::{ConsumerNumber, Token, TransactionNumber};

/// What to do besides writing the receipt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owed {
    Receipt,
    Connected,
    Subscribed(ConsumerNumber),
    Committed(TransactionNumber),
    Goodbye,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    token: u64,
    owed: Owed,
    /// Length of its receipt text; `None` = the client asked for none.
    receipt_bytes: Option<usize>,
}

/// The answers, oldest first. Receipt texts lie one after the other in one buffer as they came, escapes and all:
/// nothing is allocated for a receipt, and what a client sent it gets back to the byte.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    queue: VecDeque<Answer>,
    texts: BytesMut,
    last_token: u64,
}

impl Answers {
    /// How many are outstanding.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Bytes of their receipt texts.
    pub(crate) fn text_bytes(&self) -> usize {
        self.texts.len()
    }

    pub(crate) fn push(&mut self, owed: Owed, receipt: Option<&[u8]>) -> Token {
        self.last_token += 1;
        self.texts.extend_from_slice(receipt.unwrap_or_default());
        let receipt_bytes = receipt.map(<[u8]>::len);
        self.queue.push_back(Answer { token: self.last_token, owed, receipt_bytes });
        Token(self.last_token)
    }

    /// The oldest answer's token.
    pub(crate) fn front(&self) -> Option<Token> {
        self.queue.front().map(|answer| Token(answer.token))
    }

    /// The receipt text of the oldest answer, if that is `token`'s and nothing else hangs on it.
    pub(crate) fn receipt(&self, token: Token) -> Option<&[u8]> {
        let first =
            self.queue.front().filter(|first| first.token == token.0 && first.owed == Owed::Receipt)?;
        self.texts.get(..first.receipt_bytes?)
    }

    /// Takes the answer for `token`, hands its receipt text to `with`. Out of turn it is slow, but works.
    pub(crate) fn take<R>(&mut self, token: Token, with: impl FnOnce(Owed, Option<&[u8]>) -> R) -> Option<R> {
        let index = match self.queue.front() {
            Some(first) if first.token == token.0 => 0,
            _ => self.queue.binary_search_by_key(&token.0, |answer| answer.token).ok()?,
        };
        let start: usize = self.queue.iter().take(index).filter_map(|answer| answer.receipt_bytes).sum();
        let answer = self.queue.remove(index)?;
        let end = start + answer.receipt_bytes.unwrap_or(0);
        let text = answer.receipt_bytes.and_then(|_| self.texts.get(start..end));
        let result = with(answer.owed, text);
        if start == 0 {
            self.texts.advance(end);
        } else {
            let rest = self.texts.split_off(end);
            self.texts.truncate(start);
            self.texts.extend_from_slice(&rest);
        }
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(answers: &mut Answers, token: u64, expected: Option<Option<&str>>) {
        let taken =
            answers.take(Token(token), |_, text| text.map(|text| String::from_utf8_lossy(text).into_owned()));
        assert_eq!(taken.as_ref().map(Option::as_deref), expected);
    }

    #[test]
    fn a_receipt_is_shown_only_if_it_is_next_and_all_there_is() {
        let mut answers = Answers::default();
        answers.push(Owed::Receipt, Some(b"one"));
        answers.push(Owed::Receipt, Some(b"two"));
        answers.push(Owed::Receipt, None);
        answers.push(Owed::Goodbye, Some(b"bye"));
        assert_eq!(answers.receipt(Token(1)), Some(&b"one"[..]));
        assert_eq!(answers.receipt(Token(2)), None, "the first is first");
        check(&mut answers, 1, Some(Some("one")));
        assert_eq!(answers.receipt(Token(2)), Some(&b"two"[..]));
        check(&mut answers, 2, Some(Some("two")));
        assert_eq!(answers.receipt(Token(3)), None, "none was asked for");
        check(&mut answers, 3, Some(None));
        assert_eq!(answers.receipt(Token(4)), None, "the connection ends with it");
    }

    #[test]
    fn answers_are_taken_in_and_out_of_turn_with_their_texts() {
        let mut answers = Answers::default();
        for text in [Some("one"), None, Some(""), Some("four"), Some("five")] {
            answers.push(Owed::Receipt, text.map(str::as_bytes));
        }
        check(&mut answers, 4, Some(Some("four")));
        check(&mut answers, 1, Some(Some("one")));
        check(&mut answers, 1, None);
        check(&mut answers, 2, Some(None));
        check(&mut answers, 3, Some(Some("")));
        check(&mut answers, 5, Some(Some("five")));
        assert_eq!((answers.len(), answers.text_bytes(), answers.front()), (0, 0, None));
    }
}
